// 8-bit codes of blocks of 256 values (kernels/base/block_quantization.h), a warp a block, eight
// neighbours a lane: the host's codes and scales bit for bit.
#pragma once

#include <cstdint>

#include "kernels/base/block_quantization.h"

namespace filigree {

__device__ const QuantizationTables kMapTables[2] = {kSignedTables, kUnsignedTables};

// To shared memory, by a CTA of 256 threads; the caller synchronises.
__device__ __forceinline__ void LoadTables(QuantizationMap map, QuantizationTables* shared) {
  const QuantizationTables& tables = kMapTables[static_cast<int>(map)];
  shared->entries[threadIdx.x] = tables.entries[threadIdx.x];
  shared->tree[threadIdx.x] = tables.tree[threadIdx.x];
}

// Of the whole warp.
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  return x;
}

// The extreme value of the block; values that do not exist are zero, which changes nothing but the
// scale of a block whose existing values all have one sign: that is the extreme one's still.
__device__ __forceinline__ float ScaleOfWarp(const float (&values)[8]) {
  float most = values[0], least = values[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    most = fmaxf(most, values[i]);
    least = fminf(least, values[i]);
  }
  most = WarpMax(most);
  least = -WarpMax(-least);
  const float scale = most >= -least ? most : least;
  return fabsf(scale) < kSmallestScale ? 0.0f : scale;
}

// The code of a value under its block's scale.
__device__ __forceinline__ uint32_t CodeOf(const QuantizationTables& tables, float value,
                                           float scale) {
  const float x = scale == 0 ? 0.0f : __fdiv_rn(value, scale);
  int node = 1;
#pragma unroll
  for (int level = 0; level < 8; ++level) node = 2 * node + (x > tables.tree[node]);
  return static_cast<uint32_t>(node - 256);
}

}  // namespace filigree
