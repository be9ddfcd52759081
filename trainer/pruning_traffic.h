// What the scores of a phase that prunes exchange, for `plan`.
#pragma once

#include <cstdint>

#include "trainer/spec.h"

namespace filigree {

// Beside a step's own traffic, of the model as the phase finds it: once it is compacted there are
// fewer units, and less to send. What stays takes over from chosen units with sums of inputs and
// whole matrices, which depends on the choice and is not counted.
struct PruningTraffic {
  int64_t first_step = 0;  // steps of the run done, from which on scores are gathered after each
  int64_t bytes_per_step = 0;   // of each
  int64_t bytes_per_event = 0;  // of a removal's choice, where its criterion reads weights
};

// Nothing where phase `phase` does not prune.
PruningTraffic PlanPruningTraffic(const RunSpec& run, int phase, int ranks);

}  // namespace filigree
