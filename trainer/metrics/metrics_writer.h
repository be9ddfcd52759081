// RUN/metrics.jsonl: one flat JSON object a line, appended and flushed.
//
//   training    step tokens loss lr grad_norm sparsity tokens_per_second step_ms
//               mfu_dense_equivalent mfu_executed exchanged_bytes memory_bytes skipped_steps
//               and distillation_loss where a teacher takes part (run.proto, DistillationConfig)
//   evaluation  step val_loss val_tokens, and val_unigram_entropy where it is known
//   topology    step topology dropped grown stored_values exchanged_bytes
//               and, where units are pruned (counts are of all parameters), live_values
//               memory_bytes attention_units feed_forward_units stem_units
//   phase       step phase
//
// `step` counts the optimizer steps done. What is unknown is null. A number that is not finite is
// null too, and a field beside it says so: "loss":null,"loss_is":"nan" (or "inf", "-inf").
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "kernels/base/status.h"

namespace filigree {

// One optimizer step.
struct StepMetrics {
  int64_t step = 0;    // steps done, this one included
  int64_t tokens = 0;  // seen so far by all ranks
  double loss = 0;     // nats, the mean over the tokens of all ranks of this step
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double sparsity = 0;   // fraction of zeros over the sparsifiable weights, counted
  double tokens_per_second = 0;
  double step_ms = 0;
  std::optional<double> mfu_dense_equivalent, mfu_executed;  // fractions of the peak, if known
  int64_t exchanged_bytes = 0;                               // sent by this rank in this step
  int64_t memory_bytes = 0;                                  // of the device: peak, since compaction
  int64_t skipped_steps = 0;                                 // since this start, for non-finite gradients
  std::optional<double> distillation_loss = std::nullopt;    // T^2 KL from the teacher, as `loss`
};

struct EvaluationMetrics {
  int64_t step = 0;
  double val_loss = 0;  // nats
  int64_t val_tokens = 0;
  // Nats, of the held-out tokens under their own frequencies: what a model without context reaches.
  std::optional<double> val_unigram_entropy = std::nullopt;
};

// The weights that live have changed.
struct TopologyMetrics {
  int64_t step = 0;
  std::string topology;  // the rule, or what brought the change
  int64_t dropped = 0, grown = 0, stored_values = 0;
  int64_t exchanged_bytes = 0;  // for this update; step lines do not have them
};

// Units were removed, or the model compacted: a topology line (of parameters) with more to it.
struct PruningMetrics {
  int64_t step = 0;
  std::string topology;  // "pruning" or "compaction"
  int64_t dropped = 0;   // parameters that stopped living, or being stored
  int64_t stored_values = 0;    // parameters of the whole model
  int64_t exchanged_bytes = 0;  // since the line before; step lines do not have them
  int64_t live_values = 0;      // of stored_values
  int64_t memory_bytes = 0;     // of the device, now (a step line has the peak)
  int64_t attention_units = 0, feed_forward_units = 0, stem_units = 0;  // that live
};

// A phase begins after `step` steps. Reports mark it; a line that repeats does no harm.
struct PhaseMetrics {
  int64_t step = 0;
  std::string phase;  // its name
};

std::string ToJsonLine(const StepMetrics& metrics);
std::string ToJsonLine(const EvaluationMetrics& metrics);
std::string ToJsonLine(const TopologyMetrics& metrics);
std::string ToJsonLine(const PruningMetrics& metrics);
std::string ToJsonLine(const PhaseMetrics& metrics);

// One writer a run (rank 0).
class MetricsWriter {
 public:
  // Opens RUN/metrics.jsonl for a run that goes on after `steps_done` steps. Lines of later steps,
  // and a line torn by a crash, are dropped, so that no step appears twice; at 0 the file starts
  // anew. The rewritten file replaces the old one atomically.
  static StatusOr<std::unique_ptr<MetricsWriter>> Open(const std::string& run_dir,
                                                       int64_t steps_done);

  // Appends a line, which readers see at once. MachineError: the disk is full.
  template <typename Metrics>
  Status Write(const Metrics& metrics) {
    return WriteLine(ToJsonLine(metrics));
  }

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<std::FILE, Closer>;

  MetricsWriter(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  Status WriteLine(const std::string& line);

  std::string path_;
  File file_;
};

}  // namespace filigree
