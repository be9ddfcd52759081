// Rows of bf16 logits as the losses read them: padding columns are -infinity.
#pragma once

#include "kernels/cuda/vectors.cuh"

namespace filigree {

// Of a block, which has one row; two blocks share a multiprocessor.
constexpr int kMaxRowThreads = 512;

// Below every logit, and finite: the difference of two of them is 0.
constexpr float kLowest = -3.0e38f;

__device__ __forceinline__ float Exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

// Values of the pack whose first column is `col`; padding columns are -infinity.
template <int kVec>
__device__ __forceinline__ void LogitsOf(const Bf16Pack<kVec>& pack, int col, int vocab_size,
                                         float (&values)[kVec]) {
  Unpack(pack, values);
  if (col + kVec <= vocab_size) return;
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    if (col + k >= vocab_size) values[k] = -INFINITY;
  }
}

// The larger of `max` and all values.
template <int kVec>
__device__ __forceinline__ float MaxOf(const float (&values)[kVec], float max) {
#pragma unroll
  for (int k = 0; k < kVec; ++k) max = fmaxf(max, values[k]);
  return max;
}

}  // namespace filigree
