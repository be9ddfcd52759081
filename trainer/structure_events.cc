#include "trainer/structure_events.h"

#include <chrono>
#include <cmath>
#include <optional>

#include "kernels/base/progress.h"

namespace filigree {

void StructureEvents::BeginPhase(int phase) {
  phase_ = phase;
  topology_.BeginPhase(phase);
  pruner_.BeginPhase(phase);
}

void StructureEvents::StartPhase(int64_t step, const std::function<StepResult()>& gradients,
                                 TrainLog& log) {
  const StatisticsNeeds needs = topology_.NeedsAt(step);
  if (needs.any()) ProbeGradients(step, gradients);
  if (needs.hessian) {
    topology_.PerturbValues(*state_, stream_);
    ProbeGradients(step, gradients);
    topology_.FinishHessian(*state_, stream_);
  }
  UpdateTopology(step, log);
}

void StructureEvents::AfterStep(int64_t step, int64_t removed, TrainLog& log) {
  UpdateTopology(step, log);
  Prune(step, removed, log);
}

void StructureEvents::ProbeGradients(int64_t step, const std::function<StepResult()>& gradients) {
  topology_.StartCollecting(state_->model(), step, stream_);
  const StepResult result = gradients();
  topology_.FinishCollecting(state_->model(), stream_);
  if (!std::isfinite(result.update.grad_norm)) topology_.DiscardStatistics();
}

// What is due before the next step, if anything.
void StructureEvents::UpdateTopology(int64_t step, TrainLog& log) {
  const TopologyUpdater::Update update = topology_.Propose(*state_, step, stream_);
  if (!update.due) return;
  // Passes that collected statistics for this update alone belong to it.
  int64_t bytes = state_->exchange().TakeBytes().total() + topology_.TakeBytes();
  if (update.changed()) bytes += state_.ChangeLayouts(update.layouts, step);
  bytes += CheckLayouts();
  log.Topology({.step = step,
                .topology = update.rules,
                .dropped = update.dropped,
                .grown = update.grown,
                .exchanged_bytes = bytes},
               state_->model());
}

int64_t StructureEvents::CheckLayouts() {
  CheckLayoutsAgree(state_->parameters(), communicator_);
  return LayoutCheckBytes(state_->parameters(), communicator_.size());
}

PruningMetrics StructureEvents::DescribePruning(const char* what, int64_t step, int64_t dropped,
                                                int64_t bytes) const {
  const auto live = pruner_.LiveUnits();
  return {.step = step,
          .topology = what,
          .dropped = dropped,
          .stored_values = CountParameters(run_.model),
          .exchanged_bytes = bytes,
          .live_values = pruner_.LiveParameters(),
          .attention_units = live[static_cast<size_t>(UnitKind::kAttention)],
          .feed_forward_units = live[static_cast<size_t>(UnitKind::kFeedForward)],
          .stem_units = live[static_cast<size_t>(UnitKind::kStem)]};
}

// What was just removed is told; compaction where it is due.
void StructureEvents::Prune(int64_t step, int64_t removed, TrainLog& log) {
  if (removed > 0) {
    log.Pruning(DescribePruning("pruning", step, removed, pruner_.TakeBytes()), state_->model(),
                /*compaction_seconds=*/std::nullopt);
  }
  const std::optional<Compaction> compaction = pruner_.DueCompaction(step);
  if (!compaction) return;
  ReportActivity("compacting the model");
  const auto begin = std::chrono::steady_clock::now();
  const int64_t stored = CountParameters(run_.model);
  run_.model = compaction->model;
  int64_t bytes = state_.Compact(pruner_.table(), *compaction);
  pruner_.Compacted(*compaction);
  topology_.BeginPhase(phase_);
  bytes += CheckLayouts();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  log.Pruning(DescribePruning("compaction", step, stored - CountParameters(run_.model), bytes),
              state_->model(), seconds.count());
}

}  // namespace filigree
