// Runs the topology rules of a run: collects what their criteria need during a step, proposes the
// new layouts, and checks that all ranks agree on them.
//
// Every rank computes every proposal from the same bits: gathered values and all-reduced gradients.
// Gradients are those of the step before the event, accumulated over its micro-batches.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/sample_tree.h"
#include "trainer/spec.h"
#include "trainer/topology/plan.h"
#include "trainer/topology/update.h"
#include "trainer/topology_scores.h"
#include "trainer/training_state.h"

namespace filigree {

// Fatal where the ranks' layouts differ: names the first weight that does. Collective.
void CheckLayoutsAgree(const std::vector<Parameter>& parameters, Communicator& communicator);

// What that exchanges.
int64_t LayoutCheckBytes(const std::vector<Parameter>& parameters, int ranks);

class TopologyUpdater {
 public:
  // All must outlive the updater.
  TopologyUpdater(const RunSpec& run, Communicator& communicator, Backend& backend)
      : run_(run),
        sums_in_tree_(SumsInTree(run, backend.device())),
        communicator_(communicator),
        backend_(backend),
        event_(backend.device().NewEvent()) {}

  // The rules of this phase are in force, for the run's model as it is now.
  void BeginPhase(int phase);
  // Of the event before step `step` of the run; nothing where none is due.
  StatisticsNeeds NeedsAt(int64_t step) const;

  // Backward passes of `model` from now on add to the statistics of the weights that the event at
  // `step` scores.
  void StartCollecting(Model& model, int64_t step, Stream& stream);
  // The arrays that they add to.
  std::vector<TensorView> Collected();
  // Those passes are done: sums over ranks, unless a SampleTree has made them (SumsInTree).
  // Collective where something was collected.
  void FinishCollecting(Model& model, Stream& stream);
  // The gradients of those passes were not finite: nothing that was collected is used. The next
  // event still reaches its sparsity, by magnitude where the criterion reads statistics, and drops
  // nothing that would be grown by gradient.
  void DiscardStatistics() { statistics_.clear(); }
  // For GraSP: the gradients at the values moved a little along the gradient, of which
  // FinishCollecting was just called, are collected next; and then H g follows from both.
  void PerturbValues(TrainingState& state, Stream& stream);
  void FinishHessian(TrainingState& state, Stream& stream);

  // What an event did.
  struct Update {
    std::string rules;                            // their names
    std::map<std::string, SparseLayout> layouts;  // of all weights, after it
    // Those that events made, as the device has them: held until a state over them is built.
    std::vector<std::unique_ptr<PreparedLayout>> prepared;
    int64_t dropped = 0, grown = 0;
    bool due = false;
    bool changed() const { return dropped + grown > 0; }
  };
  // Carries out what is due before step `step` of the run: scores and selects on the device, weight
  // by weight, or all of an entry's at once where one threshold governs them. Collective; forgets
  // the statistics.
  Update Propose(const TrainingState& state, int64_t step, Stream& stream);

  // What this rank exchanged for topology since the last call.
  int64_t TakeBytes();

 private:
  // Whether an event of `entry` lacks statistics that were discarded.
  bool LacksStatistics(const TopologyEntry& entry) const;
  // The layouts of an entry's weights after its event.
  void ProposeEntry(const TrainingState& state, const TopologyEntry& entry,
                    const TopologyAction& action, int64_t step, Stream& stream, Update* update);
  void ReduceGrads(const WeightStatistics& statistics, Stream& stream);
  std::vector<float> Download(const DeviceBuffer& buffer, Stream& stream);
  void Upload(const std::vector<float>& values, DeviceBuffer* buffer, Stream& stream);
  // Counts an array of so many bytes that was summed over the ranks.
  void CountSummed(int64_t bytes);

  const RunSpec& run_;
  std::vector<LinearSpec> linears_;  // of the model as it is now
  const bool sums_in_tree_;
  Communicator& communicator_;
  Backend& backend_;
  std::unique_ptr<Event> event_;
  int phase_ = 0;
  std::vector<TopologyEntry> entries_;
  std::map<std::string, WeightStatistics> statistics_;  // by parameter name
  // While values are perturbed: what they were, stored, and the gradients there [out, in].
  struct Unperturbed {
    std::vector<float> values, grads;
  };
  std::map<std::string, Unperturbed> unperturbed_;
  double perturbation_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace filigree
