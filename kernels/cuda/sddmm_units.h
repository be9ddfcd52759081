// How the stored blocks of a weight become the units of its gradient (block_schedule.h).
#pragma once

#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// Every 64-column chunk of the gradient in one unit. Square blocks of 128 share the slices of the
// wider operand, and those that stay alone at the end of their row are paired along columns (or the
// other way round), so that few units are half filled. Other blocks go by rows or by columns, as
// leaves fewer units. With `column_sums`, all go by rows.
std::vector<SddmmUnit> MakeSddmmUnits(const BsrPattern& pattern, const SddmmForm& form);

// A unit's cost per token relative to a full one: the bytes that its operands take, or what was
// measured where that is more; the same for all where device memory bounds the time.
double SddmmUnitCost(const SddmmUnit& unit, const BsrPattern& pattern);

}  // namespace filigree
