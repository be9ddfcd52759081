// Between which sizes a model lies before a phase begins whose earlier phases' scores nobody knows.
//
// A phase's target, floors, alignments and even layers bound what its ramp can leave, whatever the
// scores: a kind goes an aligned size further only while the model is too large for the target even
// though nothing else may have gone, and stays no larger than the target lets it be where all else
// is at its floor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/spec.h"

namespace filigree {

struct SizeBounds {
  ModelSpec model;                   // whose UnitTable has the sets
  std::vector<int64_t> least, most;  // units, by set
  int64_t parameters = 0;            // at most
  bool known = true;                 // no ramp is still to decide
};

// Of a model as it is, of which `live` units of each set stay: the others are zeros that are stored
// (`most`).
SizeBounds KnownSizes(const ModelSpec& model, std::span<const int64_t> live);
SizeBounds KnownSizes(const ModelSpec& model);

// Of what `phase`, which prunes, leaves of any model within `before`. Its target counts only where
// every order of units reaches it in the phase's events.
SizeBounds BoundsAfter(const SizeBounds& before, const PhaseSpec& phase);

// The smallest model that the floors of `pruning` leave of any within `bounds`, in parameters.
int64_t FloorParameters(const SizeBounds& bounds, const PruningSpec& pruning);

}  // namespace filigree
