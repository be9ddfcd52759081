// The lines of blocks that share an operand slice in the weight gradient, and what is moved between
// the two directions so that few units are partly filled (sddmm_units.h).
#pragma once

#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// A stored block: where it lies, and its number in the pattern.
struct SddmmBlock {
  int row, col, index;
};

// The lines of one direction, rows or columns; a line is the blocks that share an A slice.
using SddmmLines = std::vector<std::vector<SddmmBlock>>;

SddmmLines ListSddmmLines(const BsrPattern& pattern, bool by_rows);

// Takes the blocks beyond a multiple of `capacity` out of as many lines as together leave fewest
// units of up to `capacity` blocks. Returns those blocks as lines of the other direction, each for
// one unit.
SddmmLines MoveRemainders(SddmmLines* lines, bool by_rows, int other_lines, int capacity);

}  // namespace filigree
