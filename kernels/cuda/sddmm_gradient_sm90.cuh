// How the weight gradient's accumulators reach memory: into the gradient of the stored blocks (fp32
// or bf16, in either orientation) or into partial sums, which SddmmReduceKernel adds in order.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"

namespace filigree::sm90 {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2 * kWarpgroup;

// Elements between neighbours along A and along B within a chunk of the gradient; one of them is 1.
struct GradientStrides {
  int a, b;
};

// The sums of dY over the tokens, where they are asked for (SddmmKernelArgs).
template <typename Gradient>
struct SddmmSums {
  Gradient* out;    // [out_features], or nullptr
  float* partials;  // [segments][2 warpgroups][64]
  const int32_t* begin;
  const int32_t* segments;
  int out_features;
  bool accumulate;
};

// Where this thread's accumulators 4j .. 4j + 3 go: (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1).
template <int kWidth, typename Gradient>
__device__ __forceinline__ Gradient* GradientAddress(Gradient* gradient, const SddmmUnit& unit,
                                                     GradientStrides strides, int thread,
                                                     int chunk) {
  const int group = thread / kWarpgroup;
  const int slot = (kWidth == 128 ? 0 : group * 4) + chunk;
  const int r =
      (kWidth == 128 ? group * 64 : 0) + (thread % kWarpgroup / 32) * 16 + thread % 32 / 4;
  const int c = thread % 4 * 2;
  return gradient + int64_t{unit.gradient_chunk[slot]} * 64 + r * strides.a + c * strides.b;
}

// Gradients pass through fp32, one or two neighbours at a time.
__device__ __forceinline__ float Read(const float* from) { return *from; }
__device__ __forceinline__ float Read(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ __forceinline__ void Write(float* to, float value) { *to = value; }
__device__ __forceinline__ void Write(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}
__device__ __forceinline__ float2 ReadPair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ __forceinline__ float2 ReadPair(const __nv_bfloat16* from) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}
__device__ __forceinline__ void WritePair(float* to, float2 pair) {
  *reinterpret_cast<float2*>(to) = pair;
}
__device__ __forceinline__ void WritePair(__nv_bfloat16* to, float2 pair) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(pair);
}

// `count` quadruples, eight columns of B apart, into (or onto) the gradient.
template <int kCount, typename Gradient>
__device__ __forceinline__ void WriteQuadruples(Gradient* address, GradientStrides strides,
                                                bool add, const float* values) {
  float old[4 * kCount] = {};
  if (strides.b == 1) {
    if (add) {
#pragma unroll
      for (int i = 0; i < 2 * kCount; ++i) {
        const float2 pair = ReadPair(address + (i % 2) * 8 * strides.a + (i / 2) * 8);
        old[2 * i] = pair.x;
        old[2 * i + 1] = pair.y;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kCount; ++i) {
      WritePair(address + (i % 2) * 8 * strides.a + (i / 2) * 8,
                make_float2(old[2 * i] + values[2 * i], old[2 * i + 1] + values[2 * i + 1]));
    }
    return;
  }
  // strides.a == 1: the eight lanes of a column of the tile write neighbours.
  if (add) {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) {
      old[i] = Read(address + i / 2 % 2 * 8 + (i / 4 * 8 + i % 2) * strides.b);
    }
  }
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) {
    Write(address + i / 2 % 2 * 8 + (i / 4 * 8 + i % 2) * strides.b, old[i] + values[i]);
  }
}

// A column of dY's sums: those of the segments that took part, in order.
template <int kWidth, typename Gradient>
__device__ __forceinline__ void ReduceSum(const SddmmSums<Gradient>& sums, int column) {
  if (column >= sums.out_features) return;
  const int slice = column / kWidth;
  const float* part = sums.partials + column % kWidth;
  float sum = sums.accumulate ? Read(sums.out + column) : 0.0f;
  for (int k = sums.begin[slice]; k < sums.begin[slice + 1]; ++k) {
    const float* values = part + int64_t{sums.segments[k]} * kSddmmSumFloats;
    sum += values[0];
    if constexpr (kWidth == 64) sum += values[64];  // the warpgroups shared the work
  }
  Write(sums.out + column, sum);
}

// Adds the partial sums of a unit in order, and with `add` what the gradient holds: what its first
// segment has written (fp32), or what the call is to add to.
// Grid: (reductions, and after them one for every 8192 columns of dY's sums; 32 quadruples of
// accumulators, or 32 times 256 columns); block: 256 threads, each for the consumer thread of that
// number. Bytes: 4 per partial value, read once.
template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kConsumers)
    SddmmReduceKernel(Gradient* gradient, const float* partials, const SddmmUnit* units,
                      const SddmmReduction* reductions, int reduction_count,
                      GradientStrides strides, bool add, SddmmSums<Gradient> sums) {
  if (blockIdx.x >= reduction_count) {
    const int tile = (blockIdx.x - reduction_count) * 32 + blockIdx.y;
    return ReduceSum<kWidth>(sums, tile * kConsumers + threadIdx.x);
  }
  const SddmmReduction reduction = reductions[blockIdx.x];
  const SddmmUnit& unit = units[reduction.unit];
  const int thread = threadIdx.x;
  const int chunk = blockIdx.y / 8;
  if (chunk >= unit.chunk_count[kWidth == 128 ? 0 : thread / kWarpgroup]) return;
  const float4* part =
      reinterpret_cast<const float4*>(partials + reduction.slot_begin * kSddmmPartialFloats);
  part += blockIdx.y * kConsumers + thread;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int s = 0; s < reduction.slot_count; ++s) {
    const float4 value = part[s * (kSddmmPartialFloats / 4)];
    sum.x += value.x;
    sum.y += value.y;
    sum.z += value.z;
    sum.w += value.w;
  }
  Gradient* address = GradientAddress<kWidth>(gradient, unit, strides, thread, chunk) +
                      blockIdx.y % 8 * 8 * strides.b;
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
  WriteQuadruples<1>(address, strides, add, values);
}

}  // namespace filigree::sm90
