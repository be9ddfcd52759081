// What a person sees of a training run: a line every few steps, and a progress bar on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "trainer/metrics/metrics_writer.h"
#include "trainer/metrics/progress_bar.h"

namespace filigree {

// "step 120/2000  tokens 61.4M  loss 3.2145  lr 2.98e-04  grad 0.412  sparsity 75.0 %  12.3k tok/s
// 41.2 ms  ETA 3m 20s". Known utilisation and skipped steps are added.
std::string StepLine(const StepMetrics& metrics, int64_t total_steps,
                     std::optional<double> seconds_left);
// "step 250  val loss 3.1042  perplexity 22.29  (1.05M tokens, unigram entropy 5.2310)".
std::string EvaluationLine(const EvaluationMetrics& metrics);

// One for a run (rank 0), alive while it trains. Lines go through the log, thus to log.txt too.
class Console {
 public:
  // Lines for steps that `log_every_steps` divides, the first after `steps_done` and the last.
  Console(int64_t total_steps, int64_t steps_done, int64_t log_every_steps);

  void Step(const StepMetrics& metrics);
  void Evaluation(const EvaluationMetrics& metrics);

 private:
  // Seconds to the end, from a running mean of the time between steps, evaluations and checkpoints
  // included; absent after the first step, which also warms up.
  std::optional<double> SecondsLeft(int64_t step);

  int64_t total_steps_, first_step_, log_every_steps_;
  double seconds_per_step_ = 0;
  int64_t steps_timed_ = 0;
  std::chrono::steady_clock::time_point last_step_ = std::chrono::steady_clock::now();
  ProgressBar bar_;
};

}  // namespace filigree
