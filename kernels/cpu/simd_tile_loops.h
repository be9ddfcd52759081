// Small dense products on registers, for the block-sparse operations. See simd_vector.h.
#pragma once

#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/simd_vector.h"

namespace filigree {
namespace {

// kTileRows x kVectors accumulators stay in registers over all terms; each step of depth loads
// kVectors vectors of B and broadcasts kTileRows elements of A.
template <typename T, int kVectors>
void TileProductOf(const TileProductArgs<T>& args) {
  const int64_t a_row = args.a_row, a_depth = args.a_depth, b_row = args.b_row;
  Vec<T> sums[kTileRows][kVectors] = {};
  for (int64_t t = 0; t < args.term_count; ++t) {
    const T* a = args.terms[t].a + args.a_first;
    const T* b = args.terms[t].b + args.b_first;
    for (int64_t k = 0; k < args.terms[t].depth; ++k) {
      Vec<T> b_k[kVectors];
      for (int j = 0; j < kVectors; ++j) b_k[j] = Load(b + j * kLanes<T>);
      for (int64_t i = 0; i < kTileRows; ++i) {
        const Vec<T> a_ik = Broadcast(a[i * a_row]);
        for (int j = 0; j < kVectors; ++j) sums[i][j] += a_ik * b_k[j];
      }
      a += a_depth;
      b += b_row;
    }
  }
  for (int64_t i = 0; i < kTileRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      Store(args.tile + (i * kVectors + j) * kLanes<T>, sums[i][j]);
    }
  }
}

template <typename T>
void TileProduct(const TileProductArgs<T>& args) {
  if (args.vectors == 2) {
    TileProductOf<T, 2>(args);
  } else {
    TileProductOf<T, 1>(args);
  }
}

}  // namespace
}  // namespace filigree
