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
#include "trainer/spec.h"
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
  // Over this rank's samples, divided by nothing; after SumInTree rank 0 has that of all samples,
  // the others nothing.
  double loss_sum = 0;
  Optimizer::Result update;
};

class TrainStep {
 public:
  // For micro-batches of `batch`. `backend` and `stream` must outlive it.
  TrainStep(const BatchSpec& batch, Backend& backend, Stream& stream);

  // From now on each sequence's gradients are taken alone and added over the ranks in one tree
  // (sample_tree.h). `communicator` must outlive the object.
  void SumInTree(Communicator& communicator) { tree_ranks_ = &communicator; }

  // Runs the step on `state`: learning rate `lr`, `updates` counted as Optimizer::Step does. A rank
  // without samples takes part in every collective.
  StepResult Run(TrainingState& state, const StepSamples& samples, const OptimizerSpec& optimizer,
                 double lr, int64_t updates);

  // The gradients alone, exchanged, and nothing updated. Where the state updates by layers only
  // their norm is left of them.
  StepResult Gradients(TrainingState& state, const StepSamples& samples);

  BatchFeeder& feeder() { return feeder_; }

 private:
  double RunPasses(TrainingState& state, const StepSamples& samples);
  // With `layers` each parameter of the last micro-batch is theirs once it has left.
  double RunMicroBatches(TrainingState& state, const StepSamples& samples, LayerUpdates* layers);
  StepResult RunByLayers(TrainingState& state, const StepSamples& samples,
                         const std::optional<Optimizer::UpdateArgs>& update);
  double RunSequencesInTree(TrainingState& state, const StepSamples& samples);

  const BatchSpec batch_;
  Backend& backend_;
  Stream& stream_;
  std::unique_ptr<Event> event_;
  BatchFeeder feeder_;
  Communicator* tree_ranks_ = nullptr;  // of SumInTree
};

}  // namespace filigree
