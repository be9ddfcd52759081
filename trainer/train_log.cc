#include "trainer/train_log.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/manifest.h"
#include "kernels/base/log.h"
#include "trainer/metrics/numbers.h"
#include "trainer/run_directory.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr double kTera = 1e12;

void WarnIfFailed(const Status& status) {
  if (!status.ok()) LogWarning(status.message());
}

// The manifest says it for data that `prepare` made, which need not be there.
std::optional<double> UnigramEntropyOf(const DataSpec& data) {
  if (data.prepared.empty()) return std::nullopt;
  const auto manifest = ReadManifest(data.prepared);
  if (!manifest.ok() || manifest->val.tokens == 0) return std::nullopt;
  return manifest->val_unigram_entropy;
}

}  // namespace

StatusOr<std::unique_ptr<TrainLog>> TrainLog::Open(const RunSpec& run, const std::string& run_dir,
                                                   int64_t steps_done, bool writes) {
  std::unique_ptr<TrainLog> log(new TrainLog(run, run_dir));
  if (!writes) return log;
  ASSIGN_OR_RETURN(log->metrics_, MetricsWriter::Open(run_dir, steps_done));
  if (run.tensorboard) {
    ASSIGN_OR_RETURN(log->events_, EventWriter::Create(run_dir + "/tb"));
  }
  log->console_.emplace(run.total_steps(), steps_done, run.log_every_steps);
  return log;
}

SparsityCount TrainLog::Count(const Model& model) {
  const double tokens = static_cast<double>(phase_->batch.tokens_per_step);
  const LinearFlops forward = ForwardFlopsPerToken(model, phase_->batch.seq_len);
  const double factor = LinearFlops::kPasses * tokens;
  flops_per_step_ = {forward.dense_equivalent * factor, forward.method * factor,
                     forward.executed * factor + teacher_flops_ * tokens};
  const SparsityCount count = CountSparsity(model.parameters());
  sparsity_ = count.sparsity();
  return count;
}

void TrainLog::Topology(TopologyMetrics metrics, const Model& model) {
  metrics.stored_values = CountSparsity(model.parameters()).nonzero;
  if (phase_) Count(model);  // else the phase is about to begin
  if (!metrics_) return;
  WarnIfFailed(metrics_->Write(metrics));
  if (sparsity_ > most_sparse_) WarnIfFailed(WriteLayers(run_dir_, model.parameters()));
  most_sparse_ = std::max(most_sparse_, sparsity_);
}

void TrainLog::Pruning(PruningMetrics metrics, const Model& model,
                       std::optional<double> compaction_seconds) {
  if (compaction_seconds) Count(model);
  if (!metrics_) return;
  metrics.memory_bytes = static_cast<int64_t>(device_->memory_usage().total_bytes);
  WarnIfFailed(metrics_->Write(metrics));
  if (!compaction_seconds) return;
  const ModelSpec& spec = model.spec();
  LogInfo("compacted after step " + std::to_string(metrics.step) + " in " +
          FormatFixed(*compaction_seconds, 2) + " s: " +
          FormatCount(static_cast<double>(metrics.stored_values)) + " parameters, width " +
          std::to_string(spec.width) + ", at most " + std::to_string(spec.heads) + " heads and " +
          std::to_string(spec.feed_forward) + " feed-forward channels a layer");
}

void TrainLog::BeginPhase(int phase, int64_t steps_done, const Model& model, double teacher_flops,
                          Backend& backend, int ranks) {
  phase_ = &run_.phases[phase];
  device_ = &backend.device();
  teacher_flops_ = teacher_flops;
  const double tokens = static_cast<double>(phase_->batch.tokens_per_step);
  const SparsityCount count = Count(model);
  unigram_entropy_ = UnigramEntropyOf(phase_->data);
  // Every rank measures, so that all are equally busy while any does.
  if (!peak_) peak_ = PeakFlops::Of(backend, run_.peak_tflops * kTera, ranks);
  if (!metrics_) return;
  WarnIfFailed(metrics_->Write(PhaseMetrics{.step = steps_done, .phase = phase_->name}));
  // The report shows the layers of the sparsest phase.
  if (sparsity_ > most_sparse_) WarnIfFailed(WriteLayers(run_dir_, model.parameters()));
  most_sparse_ = std::max(most_sparse_, sparsity_);
  LogInfo("phase " + phase_->name + ": " + FormatCount(static_cast<double>(phase_->steps)) +
          " steps of " + FormatCount(tokens) + " tokens on " + std::to_string(ranks) +
          (ranks == 1 ? " rank" : " ranks") + "; sparsifiable weights " +
          FormatCount(static_cast<double>(count.nonzero)) + " stored of " +
          FormatCount(static_cast<double>(count.logical)) + " (" + FormatPercent(sparsity_) +
          " zeros)");
}

void TrainLog::Step(StepMetrics metrics) {
  if (!metrics_) return;
  // A step that was left out took no time worth a rate.
  const double seconds = metrics.step_ms > 0 ? metrics.step_ms / 1000.0 : std::nan("");
  metrics.sparsity = sparsity_;
  metrics.tokens_per_second = static_cast<double>(phase_->batch.tokens_per_step) / seconds;
  peak_->Reached(flops_per_step_.executed / seconds);
  metrics.mfu_dense_equivalent = peak_->Share(flops_per_step_.dense_equivalent / seconds);
  metrics.mfu_executed = peak_->Share(flops_per_step_.executed / seconds);
  metrics.memory_bytes = static_cast<int64_t>(device_->memory_usage().peak_bytes);
  WarnIfFailed(metrics_->Write(metrics));
  console_->Step(metrics);
  if (events_ && (metrics.step % run_.log_every_steps == 0)) WriteEvents(metrics);
}

void TrainLog::WriteEvents(const StepMetrics& metrics) {
  const std::pair<const char*, std::optional<double>> scalars[] = {
      {"train/loss", metrics.loss},
      {"train/lr", metrics.lr},
      {"train/grad_norm", metrics.grad_norm},
      {"train/sparsity", metrics.sparsity},
      {"throughput/tokens_per_second", metrics.tokens_per_second},
      {"throughput/step_ms", metrics.step_ms},
      {"throughput/mfu_dense_equivalent", metrics.mfu_dense_equivalent},
      {"throughput/mfu_executed", metrics.mfu_executed},
      {"exchange/bytes", static_cast<double>(metrics.exchanged_bytes)},
      {"memory/bytes", static_cast<double>(metrics.memory_bytes)},
      {"train/distillation_loss", metrics.distillation_loss}};
  for (const auto& [tag, value] : scalars) {
    if (value) WarnIfFailed(events_->WriteScalar(metrics.step, tag, *value));
  }
  WarnIfFailed(events_->Flush());
}

void TrainLog::Evaluation(int64_t steps_done, const EvaluationResult& result) {
  if (!metrics_) return;
  const EvaluationMetrics metrics = {.step = steps_done,
                                     .val_loss = result.loss(),
                                     .val_tokens = result.tokens,
                                     .val_unigram_entropy = unigram_entropy_};
  if (!first_loss_) first_loss_ = metrics.val_loss;
  last_loss_ = metrics.val_loss;
  WarnIfFailed(metrics_->Write(metrics));
  console_->Evaluation(metrics);
  if (!events_) return;
  WarnIfFailed(events_->WriteScalar(steps_done, "validation/loss", metrics.val_loss));
  WarnIfFailed(events_->Flush());
}

void TrainLog::Sample(const std::string& text) {
  std::string line;
  for (const char c : text) line += c == '\n' ? std::string("\\n") : std::string(1, c);
  LogInfo("sample: " + line);
}

void TrainLog::Finish() {
  if (!metrics_) return;
  console_.reset();  // the bar goes before the summary comes
  std::string summary = "done: " + std::to_string(run_.total_steps()) + " steps";
  if (last_loss_) {
    summary +=
        ", validation loss " + FormatFixed(*first_loss_, 4) + " -> " + FormatFixed(*last_loss_, 4);
  }
  LogInfo(summary);
}

}  // namespace filigree
