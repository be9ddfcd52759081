#include "trainer/pruning_traffic.h"

#include <algorithm>

#include "trainer/model/model.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/ramp.h"
#include "trainer/pruning/saliency.h"
#include "trainer/topology/plan.h"
#include "trainer/unit_arrays.h"

namespace filigree {

PruningTraffic PlanPruningTraffic(const RunSpec& run, int phase, int ranks) {
  PruningTraffic traffic;
  const PhaseSpec& spec = run.phases[phase];
  if (!spec.pruning || ranks == 1) return traffic;
  const SaliencyCriterion& criterion = *FindSaliencyCriterion(spec.pruning->criterion);
  const Ramp ramp(*spec.pruning, TimelineOf(spec), CountParameters(run.model));
  traffic.first_step = spec.first_step + std::max<int64_t>(ramp.first_gathered(), 1);
  // Whole gradients and masters need no sum over the ranks.
  const bool sharded = run.zero_stage == 1;
  const int64_t sums =
      sharded ? UnitTable(run.model).unit_count() * static_cast<int64_t>(sizeof(UnitSums)) : 0;
  traffic.bytes_per_step = sums;
  if (criterion.needs_inputs) {
    for (const LinearSpec& linear : LinearSpecs(run.model)) {
      traffic.bytes_per_step += linear.in * static_cast<int64_t>(sizeof(double));
    }
  }
  if (criterion.needs_weights) traffic.bytes_per_event = sums;
  return traffic;
}

}  // namespace filigree
