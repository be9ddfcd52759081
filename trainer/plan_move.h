// What moving a training state takes beside the old and the new one (state_move.h), as `plan`
// counts it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/device.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// Entering phase `index` from the phase before, which ends with parameters `from`; `to` are the
// phase's own, both at the sizes and counts of the plan. Where layouts move they are taken to have
// moved.
int64_t PlanEntryMoveMemory(const std::vector<Parameter>& from, const std::vector<Parameter>& to,
                            const RunSpec& run, int index, int ranks, const Device& device);

// New layouts for the weights of phase `index` whose topology moves.
int64_t PlanUpdateMoveMemory(const std::vector<Parameter>& parameters, const RunSpec& run,
                             int index, int ranks, const Device& device);

// A smaller model for phase `index`, which prunes: any parameter may have lost cells.
int64_t PlanCompactionMoveMemory(const std::vector<Parameter>& parameters, const RunSpec& run,
                                 int index, int ranks, const Device& device);

}  // namespace filigree
