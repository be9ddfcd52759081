// GELU (tanh form) and its derivative as SpmmBsrKernel's epilogues compute them.
#pragma once

#include "kernels/cuda/spmm_shape_sm90.cuh"

namespace filigree::sm90 {

// tanh to 2^-11, a quarter of bf16's spacing.
__device__ __forceinline__ float ApproximateTanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

// tanh's argument is x * (k + k c x^2); the fewest instructions, since an epilogue runs them for
// every element on few warps.
__device__ __forceinline__ float GeluTanh(float x, float x2) {
  return ApproximateTanh(x * fmaf(kGeluScale * kGeluCubic, x2, kGeluScale));
}

__device__ __forceinline__ float Gelu(float x) {
  const float half = 0.5f * x;
  return fmaf(half, GeluTanh(x, x * x), half);
}

// (1 + t) / 2 + x / 2 * (1 - t^2) * k (1 + 3 c x^2).
__device__ __forceinline__ float GeluDerivative(float x) {
  const float x2 = x * x, t = GeluTanh(x, x2);
  const float slope = x * fmaf(1.5f * kGeluScale * kGeluCubic, x2, 0.5f * kGeluScale);
  return fmaf(slope, fmaf(-t, t, 1.0f), fmaf(0.5f, t, 0.5f));
}

}  // namespace filigree::sm90
