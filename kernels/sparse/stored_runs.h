// Walks the stored cells of a layout row by row, whatever its kind.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/sparse/layout.h"

namespace filigree {

// Calls fn(first_slot, first_column, count) for each run of consecutively stored cells in row `row`
// of the weight, in increasing column. Padding is left out.
template <typename Fn>
void ForEachStoredRun(const SparseLayout& layout, int64_t row, const Fn& fn) {
  if (layout.kind() == LayoutKind::kDense) {
    fn(row * layout.row_pitch(), int64_t{0}, layout.in());
    return;
  }
  const int64_t height = layout.block_out(), width = layout.block_in();
  const int64_t grid_row = row / height;
  const int64_t end = layout.row_offsets()[grid_row + 1];
  for (int64_t p = layout.row_offsets()[grid_row]; p < end; ++p) {
    const int64_t column = layout.columns()[p] * width;
    fn((p * height + row % height) * width, column, std::min(width, layout.in() - column));
  }
}

}  // namespace filigree
