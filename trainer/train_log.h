// What a run tells: metrics.jsonl, TensorBoard, the console, layers.json. Rank 0 writes; on the
// other ranks every call is silent. A full disk is a warning here: the next checkpoint will say it
// as an error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/evaluator.h"
#include "trainer/metrics/console.h"
#include "trainer/metrics/event_writer.h"
#include "trainer/metrics/metrics_writer.h"
#include "trainer/model/model.h"
#include "trainer/peak_flops.h"
#include "trainer/spec.h"
#include "trainer/training_state.h"

namespace filigree {

class TrainLog {
 public:
  // Opens RUN's files; on a resumed run, lines after `steps_done` are dropped first. `run` must
  // outlive it.
  static StatusOr<std::unique_ptr<TrainLog>> Open(const RunSpec& run, const std::string& run_dir,
                                                  int64_t steps_done, bool writes);

  // A phase begins (or goes on) after `steps_done` steps: says what it is and counts what the step
  // lines need. `teacher_flops` are a teacher's, executed for each token.
  void BeginPhase(int phase, int64_t steps_done, const Model& model, double teacher_flops,
                  Backend& backend, int ranks);
  // The weights that live may have changed; fills in what is stored, then tells it.
  void Topology(TopologyMetrics metrics, const Model& model);
  // Units were removed, or the model became a smaller one in so many seconds; fills in the memory.
  void Pruning(PruningMetrics metrics, const Model& model,
               std::optional<double> compaction_seconds);
  // Fills in what follows from the model and the clock (sparsity, throughput, MFU, memory), then
  // tells it.
  void Step(StepMetrics metrics);
  void Evaluation(int64_t steps_done, const EvaluationResult& result);
  // Text that the model wrote, on one line: line breaks are shown as \n.
  void Sample(const std::string& text);
  // The run is complete: a summary.
  void Finish();

 private:
  TrainLog(const RunSpec& run, std::string run_dir) : run_(run), run_dir_(std::move(run_dir)) {}
  void WriteEvents(const StepMetrics& metrics);
  SparsityCount Count(const Model& model);  // what the step lines need

  const RunSpec& run_;
  std::string run_dir_;
  // All three are absent on ranks that do not write.
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<EventWriter> events_;
  std::optional<Console> console_;

  const PhaseSpec* phase_ = nullptr;
  Device* device_ = nullptr;
  double sparsity_ = 0, most_sparse_ = -1;
  double teacher_flops_ = 0;    // a token
  LinearFlops flops_per_step_;  // forward and backward, of all ranks
  std::optional<PeakFlops> peak_;  // of all ranks
  std::optional<double> unigram_entropy_;
  std::optional<double> first_loss_, last_loss_;
};

}  // namespace filigree
