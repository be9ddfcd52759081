// One optimizer step over given samples: micro-batches, exchange, update. The trainer feeds it from
// its data, `filigree bench step` from random tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/batch_feeder.h"
#include "trainer/layer_updates.h"
#include "trainer/optimizer.h"
#include "trainer/replayed_passes.h"
#include "trainer/spec.h"
#include "trainer/teacher.h"
#include "trainer/training_state.h"

namespace filigree {

// This rank's samples of a step: [sequences, S] each, -1 a masked target.
struct StepSamples {
  const int32_t* tokens = nullptr;
  const int32_t* targets = nullptr;
  int64_t sequences = 0;
  double valid_tokens = 0;  // targets that count, over all ranks
  // Arrays beside the gradients to which backward passes add (topology_updater.h); summed here only
  // where SumInTree was called.
  std::vector<TensorView> statistics = {};
};

struct StepResult {
  // Over this rank's samples, divided by nothing: cross-entropy, and T^2 KL from the teacher. After
  // SumInTree rank 0 has those of all samples, the others nothing.
  double loss_sum = 0, divergence_sum = 0;
  Optimizer::Result update;
};

class TrainStep {
 public:
  // For micro-batches of `batch`. `backend` and `stream` must outlive it.
  TrainStep(const BatchSpec& batch, Backend& backend, Stream& stream);

  // From now on each sequence's gradients are taken alone and added over the ranks in one tree
  // (sample_tree.h). `communicator` must outlive the object.
  void SumInTree(Communicator& communicator) { tree_ranks_ = &communicator; }

  // From now on passes during which nothing waits for other ranks or leaves for them, and whose
  // gradients are not updated meanwhile, are recorded and replayed (replayed_passes.h): the same
  // bits, sooner submitted. On one rank these are all, on several those between a step's first
  // micro-batch and its last.
  void ReplayPasses() { replayed_ = std::make_unique<ReplayedPasses>(backend_.device()); }
  // Passes that came from a recording, so far.
  int64_t replays() const { return replayed_ ? replayed_->replays() : 0; }

  // From now on the loss has a teacher (nullptr: none), which must outlive the step's use.
  void set_teacher(Teacher* teacher, const DistillationSpec& distillation) {
    CHECK(!replayed_) << "a teacher is part of the passes that are replayed";
    teacher_ = teacher;
    distillation_ = distillation;
  }

  // Runs the step on `state`: learning rate `lr`, `updates` counted as Optimizer::Step does. A rank
  // without samples takes part in every collective.
  StepResult Run(TrainingState& state, const StepSamples& samples, const OptimizerSpec& optimizer,
                 double lr, int64_t updates);

  // The gradients alone, exchanged, and nothing updated. Where the state updates by layers only
  // their norm is left of them.
  StepResult Gradients(TrainingState& state, const StepSamples& samples);

  BatchFeeder& feeder() { return feeder_; }

 private:
  StepResult RunPasses(TrainingState& state, const StepSamples& samples);
  // With `layers` each parameter of the last micro-batch is theirs once it has left.
  void RunMicroBatches(TrainingState& state, const StepSamples& samples, LayerUpdates* layers);
  StepResult RunByLayers(TrainingState& state, const StepSamples& samples,
                         const std::optional<Optimizer::UpdateArgs>& update);
  StepResult RunSequencesInTree(TrainingState& state, const StepSamples& samples);
  // `replay`: the model has no hooks that do anything, and the pass may come from a recording.
  void RunMicroBatch(Model& model, MicroBatch batch, double loss_scale, bool replay);
  // Of the micro-batches since the last call.
  void TakeLosses(StepResult* result);

  const BatchSpec batch_;
  Backend& backend_;
  Stream& stream_;
  std::unique_ptr<Event> event_;
  BatchFeeder feeder_;
  Communicator* tree_ranks_ = nullptr;        // of SumInTree
  std::unique_ptr<ReplayedPasses> replayed_;  // of ReplayPasses
  Teacher* teacher_ = nullptr;
  DistillationSpec distillation_;
};

}  // namespace filigree
