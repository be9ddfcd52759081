// A layout of any kind as kernels that go from cells to slots, or back, take it.
#pragma once

#include <cstdint>

#include "kernels/cuda/prepared_layout.h"

namespace filigree {

// A layout of any kind. A dense one has no row offsets; it is one block a row, a pitch wide.
struct Cells {
  const uint32_t* row_offsets = nullptr;
  const void* columns = nullptr;
  bool short_columns = false;
  int height = 1;
  int64_t width = 0, out = 0, in = 0;
  int64_t grid_rows = 0;

  __device__ __forceinline__ int64_t column(uint32_t entry) const {
    return short_columns ? int64_t{static_cast<const uint16_t*>(columns)[entry]}
                         : int64_t{static_cast<const uint32_t*>(columns)[entry]};
  }
  __device__ __forceinline__ int32_t SlotOf(int64_t row, int64_t column_of_cell) const {
    if (row_offsets == nullptr) return static_cast<int32_t>(row * width + column_of_cell);
    const int64_t wanted = column_of_cell / width;
    uint32_t begin = row_offsets[row / height];
    const uint32_t row_end = row_offsets[row / height + 1];
    uint32_t end = row_end;
    while (begin < end) {
      const uint32_t middle = begin + (end - begin) / 2;
      if (column(middle) < wanted) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    if (begin == row_end || column(begin) != wanted) return kNewCell;
    return static_cast<int32_t>((int64_t{begin} * height + row % height) * width +
                                column_of_cell % width);
  }
  // out_index * in + in_index of a stored slot; -1 where it is padding.
  __device__ __forceinline__ int64_t CellOf(int64_t slot) const {
    const int64_t area = height * width;
    const int64_t entry = slot / area, inside = slot - entry * area;
    int64_t row = entry, left = 0;
    if (row_offsets != nullptr) {
      int64_t begin = 0, end = grid_rows;  // the last row that begins at the entry or before it
      while (end - begin > 1) {
        const int64_t middle = (begin + end) / 2;
        (row_offsets[middle] <= entry ? begin : end) = middle;
      }
      row = begin;
      left = column(static_cast<uint32_t>(entry)) * width;
    }
    row = row * height + inside / width;
    const int64_t at = left + inside % width;
    return row < out && at < in ? row * in + at : -1;
  }
};

inline Cells CellsOf(const PreparedLayout* weight) {
  const SparseLayout& layout = weight->layout();
  if (layout.kind() == LayoutKind::kDense) {
    return {.height = 1,
            .width = layout.row_pitch(),
            .out = layout.out(),
            .in = layout.in(),
            .grid_rows = layout.out()};
  }
  const DeviceLayout& indices = Prepared(weight).indices();
  return {.row_offsets = indices.row_offsets,
          .columns = indices.columns,
          .short_columns = indices.short_columns,
          .height = layout.block_out(),
          .width = layout.block_in(),
          .out = layout.out(),
          .in = layout.in(),
          .grid_rows = layout.grid_rows()};
}

}  // namespace filigree
