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

// Of a layout whose columns have that type.
template <typename Column>
Index<Column> IndexOf(const CudaPreparedLayout& prepared) {
  const SparseLayout& layout = prepared.layout();
  const DeviceLayout& indices = prepared.indices();
  return {indices.row_offsets, static_cast<const Column*>(indices.columns),
          layout.block_out(),  layout.block_in(),
          layout.out(),        layout.in()};
}

// Calls fn(Index) with the column type of the layout.
template <typename Fn>
void WithIndex(const CudaPreparedLayout& prepared, const Fn& fn) {
  if (prepared.indices().short_columns) {
    fn(IndexOf<uint16_t>(prepared));
  } else {
    fn(IndexOf<uint32_t>(prepared));
  }
}

}  // namespace filigree
