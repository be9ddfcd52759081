// How the stored blocks of a weight become the units of its gradient (block_schedule.h).
#pragma once

#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// Every 64-column chunk of the gradient in one unit; where there are several ways to choose from,
// all of them, the best of equally many steps first.
//
// Square blocks of 128 share the slices of the wider operand, and what would leave a line's last
// unit partly filled moves to units of the other direction. Square blocks of 64 may do so in either
// direction, or go all by rows or all by columns, in equal parts of a line: those are fewer a line
// and narrower, and faster where they fit into as many steps. Other blocks share their wider side.
// With `column_sums`, all go by rows.
std::vector<std::vector<SddmmUnit>> MakeSddmmUnits(const BsrPattern& pattern,
                                                   const SddmmForm& form);

}  // namespace filigree
