// A prepared layout as kernels over stored cells or blocks take it.
#pragma once

#include <cstdint>

#include "kernels/cuda/prepared_layout.h"

namespace filigree {

template <typename Column>
struct Index {
  const uint32_t* row_offsets;
  const Column* columns;
  int height, width;  // of a block
  int64_t out, in;    // of the weight
};

// Calls fn(Index) with the column type of the layout.
template <typename Fn>
void WithIndex(const CudaPreparedLayout& prepared, const Fn& fn) {
  const SparseLayout& layout = prepared.layout();
  const DeviceLayout& indices = prepared.indices();
  const auto make = [&](auto column) {
    using Column = decltype(column);
    fn(Index<Column>{indices.row_offsets, static_cast<const Column*>(indices.columns),
                     layout.block_out(), layout.block_in(), layout.out(), layout.in()});
  };
  if (indices.short_columns) {
    make(uint16_t{});
  } else {
    make(uint32_t{});
  }
}

}  // namespace filigree
