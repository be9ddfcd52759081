// How the weight gradient's accumulators reach memory: into the gradient of the stored blocks (fp32
// or bf16, by rows or by columns), or into partial sums, which the worker that writes the gradient
// waits for and adds in order, or which SddmmReduceKernel adds afterwards.
//
// A partial sum is handed over in two halves, one a warpgroup: its threads store, fence and meet at
// a barrier, after which one thread releases the arrival; on the other side one thread acquires it
// and the others follow through a barrier. The writer of the gradient is the only one to read an
// arrival, and sets it back.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/sm90_pipeline.cuh"

namespace filigree::sm90 {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2 * kWarpgroup;

// Elements between neighbours along A and along B within a chunk of the gradient; one of them is 1.
struct GradientStrides {
  int a, b;
};

// `cols`: of a block.
__device__ __forceinline__ GradientStrides StridesOf(const SddmmUnit& unit, int cols) {
  return unit.by_rows ? GradientStrides{cols, 1} : GradientStrides{1, cols};
}

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

// A barrier of one warpgroup of consumers. The number is a constant on either path: with one from a
// register the compiler would claim all sixteen.
__device__ __forceinline__ void WarpgroupSync(int group) {
  if (group == 0) {
    NamedBarrierSync(1, kWarpgroup);
  } else {
    NamedBarrierSync(2, kWarpgroup);
  }
}

// Waits for this warpgroup's half of a unit's partial sums, each of which is awaited once.
__device__ __forceinline__ void AwaitPartials(uint32_t* arrivals, const SddmmUnit& unit,
                                              int group) {
  if (threadIdx.x % kWarpgroup == 0) {
    for (int slot = unit.slot_begin; slot < unit.slot_begin + unit.slot_count; ++slot) {
      uint32_t* arrival = arrivals + slot * 2 + group;
      uint32_t arrived;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(arrived)
                     : "l"(arrival)
                     : "memory");
      } while (arrived == 0);
      *arrival = 0;  // as the next launch expects it
    }
  }
  WarpgroupSync(group);
}

// Leaves the accumulators to the worker that writes the gradient, or without `arrivals` to the
// second kernel.
__device__ __forceinline__ void WritePartial(const float (&acc)[128], float* partials,
                                             uint32_t* arrivals, int slot, int count, int group) {
  if (count == 0) return;
  const int thread = threadIdx.x - kWarpgroup;
  float4* part = reinterpret_cast<float4*>(partials + slot * kSddmmPartialFloats);
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    if (chunk >= count) break;
#pragma unroll
    for (int j = chunk * 8; j < chunk * 8 + 8; ++j) {
      __stcg(part + j * kConsumers + thread,
             make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    }
  }
  if (arrivals == nullptr) return;
  __threadfence();
  WarpgroupSync(group);
  if (threadIdx.x % kWarpgroup == 0) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(arrivals + slot * 2 + group), "r"(1)
                 : "memory");
  }
}

// The accumulators, and after them the partial sums of the unit's other workers in order, into the
// gradient or onto it.
template <int kWidth, typename Gradient>
__device__ __forceinline__ void WriteGradient(const float (&acc)[128], Gradient* gradient,
                                              const float* partials, uint32_t* arrivals,
                                              const SddmmUnit& unit, int count, int group, int cols,
                                              bool add) {
  if (count == 0) return;
  if (unit.slot_count > 0) AwaitPartials(arrivals, unit, group);
  const int thread = threadIdx.x - kWarpgroup;
  const GradientStrides strides = StridesOf(unit, cols);
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    if (chunk >= count) break;
    float values[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) values[i] = acc[chunk * 32 + i];
    for (int slot = unit.slot_begin; slot < unit.slot_begin + unit.slot_count; ++slot) {
      const float4* part = reinterpret_cast<const float4*>(partials + slot * kSddmmPartialFloats) +
                           chunk * 8 * kConsumers + thread;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 value = __ldcg(part + j * kConsumers);
        values[4 * j] += value.x;
        values[4 * j + 1] += value.y;
        values[4 * j + 2] += value.z;
        values[4 * j + 3] += value.w;
      }
    }
    WriteQuadruples<8>(GradientAddress<kWidth>(gradient, unit, strides, thread, chunk), strides,
                       add, values);
  }
}

// Every fourth lane has the sums of two columns of A.
__device__ __forceinline__ void WriteColumnSums(const float (&columns)[4], float* partials,
                                                int segment) {
  const int thread = threadIdx.x - kWarpgroup, lane = thread % 32;
  if (lane % 4 != 0) return;
  float* to = partials + int64_t{segment} * kSddmmSumFloats + thread / kWarpgroup * 64 +
              thread % kWarpgroup / 32 * 16 + lane / 4;
  to[0] = columns[0];
  to[8] = columns[2];
}

// Adds the partial sums of units that no segment has written, in order, and with `add` what the
// gradient holds.
// Grid: (units, 32 quadruples of accumulators); block: 256 threads, each for the consumer thread of
// that number. Bytes: 4 per partial value, read once.
template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kConsumers)
    SddmmReduceKernel(Gradient* gradient, const float* partials, const SddmmUnit* units,
                      const int32_t* reductions, int cols, bool add) {
  const SddmmUnit& unit = units[reductions[blockIdx.x]];
  const int thread = threadIdx.x, chunk = blockIdx.y / 8;
  if (chunk >= unit.chunk_count[kWidth == 128 ? 0 : thread / kWarpgroup]) return;
  const float4* part =
      reinterpret_cast<const float4*>(partials + unit.slot_begin * kSddmmPartialFloats);
  part += blockIdx.y * kConsumers + thread;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int s = 0; s < unit.slot_count; ++s) {
    const float4 value = part[s * (kSddmmPartialFloats / 4)];
    sum.x += value.x;
    sum.y += value.y;
    sum.z += value.z;
    sum.w += value.w;
  }
  const GradientStrides strides = StridesOf(unit, cols);
  Gradient* address = GradientAddress<kWidth>(gradient, unit, strides, thread, chunk) +
                      blockIdx.y % 8 * 8 * strides.b;
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
  WriteQuadruples<1>(address, strides, add, values);
}

// The sums of dY's columns, each those of the segments that took part, in order.
// Grid: one for every 256 columns; block: 256 threads, a column each.
template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kConsumers) SddmmSumKernel(SddmmSums<Gradient> sums) {
  const int column = blockIdx.x * kConsumers + threadIdx.x;
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

}  // namespace filigree::sm90
