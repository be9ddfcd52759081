// Small dense products on registers, for the block-sparse operations. See simd_vector.h.
#pragma once

#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/simd_vector.h"

namespace filigree {
namespace {

// kTileRows x kVectors accumulators stay in registers over all terms; each step of depth loads
// kVectors vectors of B and broadcasts kTileRows elements of A.
template <typename T, int kVectors>
void TileProductOf(const TileTerm<T>* terms, int64_t count, int64_t a_row, int64_t a_depth,
                   int64_t b_row, T* tile) {
  Vec<T> sums[kTileRows][kVectors] = {};
  for (int64_t t = 0; t < count; ++t) {
    // Two base pointers and one stride reach eight rows within x86's addressing modes.
    const T* a0 = terms[t].a;
    const T* b = terms[t].b;
    for (int64_t k = 0; k < terms[t].depth; ++k) {
      Vec<T> bs[kVectors];
      for (int j = 0; j < kVectors; ++j) bs[j] = Load(b + j * kLanes<T>);
      for (int64_t i = 0; i < kTileRows; ++i) {
        const Vec<T> a = Broadcast(a0[i * a_row]);
        for (int j = 0; j < kVectors; ++j) sums[i][j] += a * bs[j];
      }
      a0 += a_depth;
      b += b_row;
    }
  }
  for (int64_t i = 0; i < kTileRows; ++i) {
    for (int j = 0; j < kVectors; ++j) Store(tile + (i * kVectors + j) * kLanes<T>, sums[i][j]);
  }
}

template <typename T>
void TileProduct(const TileTerm<T>* terms, int64_t count, int64_t a_row, int64_t a_depth,
                 int64_t b_row, int vectors, T* tile) {
  if (vectors == 2) {
    TileProductOf<T, 2>(terms, count, a_row, a_depth, b_row, tile);
  } else {
    TileProductOf<T, 1>(terms, count, a_row, a_depth, b_row, tile);
  }
}

}  // namespace
}  // namespace filigree
