// What a plan of the weight gradient reads from device memory (sddmm_plan.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/sddmm_plan.h"

namespace filigree {

// Bytes of both operands that come from device memory, if all workers take a step in the same time
// and a slice stays in the L2 for `kept_steps` of them: workers that are no further apart in the
// tokens share what they read, others read it again. `a_chunks`: of a unit's A slice, 64s.
int64_t SddmmReadBytes(const SddmmPlan& plan, const std::vector<SddmmUnit>& units, int a_chunks,
                       int kept_steps);

}  // namespace filigree
