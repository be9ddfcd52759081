// Blocked weights that share their input as one weight, for Backend::PrepareGroup.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/backend.h"

namespace filigree {

// The parts one under the other, or nothing where one kernel cannot read them so: blocks differ or
// do not divide the outputs, or values begin where no block of a BsrPattern may (block_schedule.h).
std::optional<SparseLayout> JoinLayouts(std::span<const PreparedLayout* const> parts,
                                        std::span<const int64_t> value_begin);

}  // namespace filigree
