// The size that a phase's pruning leaves, before anyone knows which units go.
#pragma once

#include "trainer/spec.h"

namespace filigree {

// `model` after `pruning`, if all sets of units gave in proportion to what they have: floors,
// alignments and even layers as the ramp keeps them. Scores of a run choose otherwise; its
// parameters come out alike.
ModelSpec PrunedInProportion(const ModelSpec& model, const PruningSpec& pruning);

}  // namespace filigree
