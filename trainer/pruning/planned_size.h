// The size that a phase's pruning leaves, before anyone knows which units go.
#pragma once

#include <cstdint>

#include "trainer/spec.h"
#include "trainer/topology/timeline.h"

namespace filigree {

// `model` after `pruning`, if all sets of units gave in proportion to what they have: floors,
// alignments and even layers as the ramp keeps them. Scores of a run choose otherwise; its
// parameters come out alike.
ModelSpec PrunedInProportion(const ModelSpec& model, const PruningSpec& pruning);

// Which units scores may turn out to choose.
enum class UnitOrder {
  kInProportion,   // of all sets alike
  kSmallestFirst,  // those with the fewest parameters: the target costs the most units
};
// How far a ramp comes that removes at most units_per_event at a time.
struct RampReach {
  int64_t units = 0;            // that the target costs
  int64_t events = 0;           // of the phase
  int64_t removed = 0;          // units that go before the last event, which finishes
  int64_t parameters = 0;       // that live then
  int64_t units_per_event = 0;  // the least that would do; 0: none would
  bool reached() const { return removed == units; }
};
RampReach ReachOf(const ModelSpec& model, const PruningSpec& pruning, const Timeline& timeline,
                  UnitOrder order);

}  // namespace filigree
