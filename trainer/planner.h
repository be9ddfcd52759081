// What a run will cost, before it starts: `filigree plan`.
//
// Counted from layouts of the shapes and counts that the run will have, by the same code that the
// run uses; layers of one shape share a drawn layout here, so that a large model is planned in
// moments. Between a moving topology's events the counts are its rule's, exact to the unit; under a
// common threshold the total is, and each weight's share is taken to be the same. Memory and
// traffic are those of the phase's fullest moment.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "comm/gradient_exchange.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/linear/linear.h"
#include "trainer/pruning_traffic.h"
#include "trainer/sparsified_memory.h"
#include "trainer/spec.h"
#include "trainer/step_traffic.h"
#include "trainer/topology_traffic.h"

namespace filigree {

struct PhasePlan {
  std::string name;
  // An earlier phase prunes. Which units its scores leave is not known: the model is taken to have
  // shrunk in all its parts alike, to that phase's target (PrunedInProportion).
  bool pruned_before = false;
  int64_t steps = 0, tokens = 0;
  int64_t parameters_logical = 0;  // of the dense model, as the phase finds it
  int64_t parameters_stored = 0;   // trained values; neither edge nor vocabulary padding
  int64_t parameters_final = 0;    // stored at its end: fewer where it prunes
  int64_t parameters_indexed = 0;  // of the stored, single weights beside low-rank factors
  double sparsity = 0;             // over the sparsifiable weights, when the phase begins
  // Over the steps of the phase; where the topology does not move, of its one layout.
  double average_density = 0;     // of the sparsifiable weights
  double average_parameters = 0;  // stored
  double final_sparsity = 0;
  // Where the density of the sparsifiable weights changes: from that step of the run on.
  struct DensityPoint {
    int64_t step = 0;
    double density = 0;
  };
  std::vector<DensityPoint> density;
  LinearFlops flops;         // of the whole phase: forward and backward, three kinds
  ExchangedBytes exchanged;  // of one step
  // Of a topology that moves (topology_traffic.h): bytes of a step from that step of the run on,
  // and of the update after that many steps.
  std::vector<TopologyTraffic::Point> step_bytes, update_bytes;
  PruningTraffic pruning_bytes;
  int64_t bucket_bytes = 0;  // of gradients, at most, unless one parameter has more
  int buckets = 0;
  // One rank's bytes by kind: values grads master moments layouts compute_copies activations
  // scratch, and topology: what an update holds beside these, the dense gradients that it collects
  // or the new state while the old one is there, or what a removal of units collects; transition: by how much what entering the phase,
  // or compacting the model, holds in the same way is more than that; teacher where there is one.
  std::map<std::string, int64_t> memory_bytes;
  int64_t memory_total() const;
  // Of these, what is left of the state while the next one is built beside it.
  int64_t state_bytes = 0;
  SparsifiedMemory sparsified;  // of the above, what the sparsified weights have
  // What SLTrain's paper (arXiv 2406.02214) counts as a model's memory: a bf16 value and two bf16
  // moments of all that is stored, and an index for each single weight, of 8 bytes there.
  int64_t SltrainBytes(int64_t index_bytes) const {
    return 6 * parameters_stored + index_bytes * parameters_indexed;
  }
};

struct RunPlan {
  std::vector<PhasePlan> phases;
  int64_t tokens() const;
  LinearFlops flops() const;
  // Stored parameters averaged over training tokens: the size of the dense model that "Journey
  // Matters" (arXiv 2501.12486) predicts to reach the same loss.
  double average_parameters() const;
  // The same over the sparsifiable weights, as a fraction of them.
  double average_density() const;
  // The phase that needs the most memory.
  const PhasePlan& largest() const;
};

// OK where every phase's sparsity fits the size that phases before it are planned to leave; else the
// phase and the weight. A run may choose another size: it is then for the phase's start to say.
Status CheckPlannedSizes(const RunSpec& run);

// CheckPlannedSizes is OK. `teachers` are the run's (OpenTeachers); the memory of a phase's is its kind "teacher", its
// forward passes count as executed operations.
RunPlan PlanRun(const RunSpec& run, int ranks, Backend& backend,
                const std::map<std::string, CheckpointInfo>& teachers = {});

}  // namespace filigree
