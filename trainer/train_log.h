// What a run tells: metrics.jsonl, TensorBoard, the console, layers.json. Rank 0 writes; on the other ranks
// every call is silent. A full disk is a warning here: the checkpoint will say it as an error.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/flat_buffer.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/evaluator.h"
#include "trainer/model/model.h"
#include "trainer/spec.h"

namespace filigree {

// What the trainer measures in a step; the log adds what follows from the model.
struct StepMetrics {
  int64_t step = 0;    // steps done, this one included
  int64_t tokens = 0;  // seen by all ranks so far
  double loss = 0, lr = 0, grad_norm = 0, step_ms = 0;
  int64_t exchanged_bytes = 0;  // by this rank in this step
  int64_t skipped_steps = 0;    // since the process started
};

class TrainLog {
 public:
  // Opens RUN's files; on a resumed run lines from `step` on are dropped first.
  static StatusOr<std::unique_ptr<TrainLog>> Open(const RunSpec& run, const std::string& run_dir,
                                                  int64_t step, bool writes);
  virtual ~TrainLog() = default;
  // A phase begins (or goes on) with this model: says what it is and measures what MFU needs.
  virtual Status BeginPhase(int phase, const Model& model, const FlatBuffer& buffer,
                            Backend& backend, int ranks) = 0;
  virtual void Step(const StepMetrics& metrics) = 0;
  virtual void Evaluation(int64_t step, const EvaluationResult& result) = 0;
  // The run is complete: a summary.
  virtual void Finish() = 0;
};

}  // namespace filigree
