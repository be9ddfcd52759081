// How the stored blocks of a weight become the units of its gradient (block_schedule.h).
#pragma once

#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// Every 64-column chunk of the gradient in one unit. By rows or by columns, as leaves fewer units;
// square blocks of 128 that stay alone at the end of their row are paired along columns (and the
// other way round), so that few units are half filled. With `column_sums`, by rows only.
std::vector<SddmmUnit> MakeSddmmUnits(const BsrPattern& pattern, const SddmmForm& form);

// A unit's cost per token relative to a full one: the bytes that its operands take.
double SddmmUnitCost(const SddmmUnit& unit, const BlockShape& block);

}  // namespace filigree
