// What changes in the course of a phase, as `plan` counts it (planner.h): weights whose topology
// moves, and models that shrink.
#pragma once

#include <vector>

#include "trainer/model/model.h"
#include "trainer/planner.h"
#include "trainer/spec.h"

namespace filigree {

// The phase with the sparsity of its fullest moment: where memory and traffic peak.
PhaseSpec FullestMoment(PhaseSpec phase);

// Replaces the counts of the phase's fullest moment in `plan` by their course over its steps.
void FollowTopology(const Model& model, const PhaseSpec& phase, const PhaseSpec& fullest,
                    PhasePlan* plan);

// The same for a phase that prunes `model`. What is pruned costs nothing from then on; a parameter
// is taken to cost 2 operations a token and pass, as those of linears do, and of a sparse phase as
// many of the rest as its density says. Compaction follows in jumps of `compact_share`, which is
// not counted.
void FollowPruning(const ModelSpec& model, const PhaseSpec& phase, PhasePlan* plan);

}  // namespace filigree
