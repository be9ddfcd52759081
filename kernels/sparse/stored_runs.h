// Walks the stored cells of a layout, whatever its kind: row by row, or in stored order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

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

// The logical cells of the stored slots [first, first + count): out_index * in + in_index, or -1 for
// padding.
inline void CellsOfSlots(const SparseLayout& layout, int64_t first, int64_t count, int64_t* cells) {
  const bool dense = layout.kind() == LayoutKind::kDense;  // one block a row, a pitch wide
  const int64_t height = dense ? 1 : layout.block_out();
  const int64_t width = dense ? layout.row_pitch() : layout.block_in();
  const auto offsets = layout.row_offsets();
  const auto row_after = [&](int64_t entry) {
    return std::upper_bound(offsets.begin(), offsets.end(), entry) - offsets.begin();
  };
  int64_t grid_row = dense || count == 0 ? 0 : row_after(first / (height * width)) - 1;
  for (int64_t slot = first; slot < first + count;) {
    const int64_t entry = slot / (height * width), inside = slot % (height * width);
    while (!dense && entry >= offsets[grid_row + 1]) ++grid_row;
    const int64_t row = (dense ? entry : grid_row) * height + inside / width;
    const int64_t column = (dense ? 0 : layout.columns()[entry] * width) + inside % width;
    const int64_t run = std::min(width - inside % width, first + count - slot);
    const int64_t real =
        row < layout.out() ? std::clamp<int64_t>(layout.in() - column, 0, run) : 0;
    int64_t* to = cells + (slot - first);
    std::iota(to, to + real, row * layout.in() + column);
    std::fill(to + real, to + run, -1);
    slot += run;
  }
}

}  // namespace filigree
