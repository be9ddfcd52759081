// What changes which weights a run has while it goes on, its topology rules and its pruning:
// carried out on its state and told to its log.
#pragma once

#include <cstdint>
#include <functional>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/pruner.h"
#include "trainer/spec.h"
#include "trainer/state_succession.h"
#include "trainer/topology_updater.h"
#include "trainer/train_log.h"
#include "trainer/train_step.h"

namespace filigree {

// Everything but the accessors and BeginPhase is collective.
class StructureEvents {
 public:
  // All must outlive it. `run.model` is the model as it is now: compaction makes it smaller.
  StructureEvents(RunSpec& run, StateSuccession& state, Communicator& communicator,
                  Backend& backend, Stream& stream)
      : run_(run),
        state_(state),
        communicator_(communicator),
        stream_(stream),
        topology_(run, communicator, backend),
        pruner_(run, communicator, backend) {}

  TopologyUpdater& topology() { return topology_; }
  Pruner& pruner() { return pruner_; }

  // The phase begins, or goes on after a restart.
  void BeginPhase(int phase);
  // Once a phase, at its start before step `step`: what its rules do there. `gradients` computes
  // those of the coming step's batch, for rules that score before it.
  void StartPhase(int64_t step, const std::function<StepResult()>& gradients, TrainLog& log);
  // What is due after step `step`, which removed so many parameters by pruning.
  void AfterStep(int64_t step, int64_t removed, TrainLog& log);

 private:
  void ProbeGradients(int64_t step, const std::function<StepResult()>& gradients);
  void UpdateTopology(int64_t step, TrainLog& log);
  void Prune(int64_t step, int64_t removed, TrainLog& log);
  // Checks that the ranks have the same layouts; returns what that exchanged.
  int64_t CheckLayouts();
  PruningMetrics DescribePruning(const char* what, int64_t step, int64_t dropped,
                                 int64_t bytes) const;

  RunSpec& run_;
  StateSuccession& state_;
  Communicator& communicator_;
  Stream& stream_;
  TopologyUpdater topology_;
  Pruner pruner_;
  int phase_ = 0;
};

}  // namespace filigree
