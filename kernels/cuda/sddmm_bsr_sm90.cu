// SddmmBsrKernel: dW = dY^T X on the stored blocks, into an fp32 gradient laid out like the blocks.
//
// A unit is one block row times up to four (kRows = 128) or eight (kRows = 64) chunks of 64 input
// columns. The chunks need not be neighbours in X: each is a box of its own that lands 8 KB after the
// last one, and four of them are one operand of m64n256k16. Both operands have the reduction (tokens)
// down their rows, so both are read "transposed" and nothing is ever transposed in memory.
//   kRows = 128: the two consumer warpgroups take 64 rows each and share four chunks.
//   kRows =  64: they share the rows and take up to four chunks each.
// Grid: one CTA per multiprocessor, persistent; each walks its list of segments (unit, token range).
//   Block: 384 threads: warpgroup 0 issues the copies, 1 and 2 multiply.
// Shared memory: a ring of stages {dY 64 tokens x kRows, X up to 4 or 8 boxes of 64 tokens x 64},
//   then barriers.
// Bytes from L2 per step of 64 tokens: (kRows + 64 * chunks) * 128. FLOPs: 2 * 64 * kRows * 64 *
//   chunks. Deterministic: where several CTAs share a unit, one writes the gradient and the others
//   partial sums, which SddmmReduceKernel adds in a fixed order.
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace filigree {
namespace {

using namespace sm90;  // NOLINT: device primitives, file-local

constexpr int kThreads = 384;
constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kBoxBytes = 64 * 128;  // 64 tokens x 64 columns

template <int kRows>
struct SddmmShape {
  static constexpr int kRowBoxes = kRows / 64;
  static constexpr int kSlots = kRows == 128 ? 4 : 8;
  static constexpr int kStages = kRows == 128 ? 4 : 3;
  static constexpr int kStageBytes = (kRowBoxes + kSlots) * kBoxBytes;
  static constexpr int kBarrierOffset = kStages * kStageBytes;
  static constexpr int kSharedBytes =
      kBarrierOffset + static_cast<int>(sizeof(RingBarriers<kStages>)) + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct SddmmParams {
  CUtensorMap output_grad;  // [chunks][tokens][64]
  CUtensorMap input;        // [chunks][tokens][64]
  float* gradient;
  float* partials;
  const SddmmUnit* units;
  const SddmmSegment* segments;
  const int32_t* worker_begin;
  int block_cols;
  bool accumulate;
};

__device__ __forceinline__ SddmmSegment LoadSegment(const SddmmSegment* segments, int index) {
  const int4 raw = __ldg(reinterpret_cast<const int4*>(segments) + index);
  return {raw.x, raw.y, raw.z, raw.w};
}

template <int kRows>
__device__ __forceinline__ void Produce(const SddmmParams& params, uint8_t* ring,
                                        RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                        int begin, int end) {
  using Shape = SddmmShape<kRows>;
  const uint64_t policy = PolicyEvictNormal();
  RingPosition<Shape::kStages> position;
  position.parity = 1;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int row_chunk = unit.row_chunk;
    int input_chunk[Shape::kSlots];
    bool used[Shape::kSlots];
    int boxes = Shape::kRowBoxes;
#pragma unroll
    for (int i = 0; i < Shape::kSlots; ++i) {
      used[i] = i % 4 < unit.chunk_count[i / 4];
      input_chunk[i] = unit.input_chunk[i];
      boxes += used[i];
    }
    for (int step = 0; step < segment.step_count; ++step) {
      const int token = segment.token_begin + step * 64;
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* stage = ring + position.slot * Shape::kStageBytes;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, boxes * kBoxBytes);
#pragma unroll
      for (int i = 0; i < Shape::kRowBoxes; ++i) {
        TmaLoad3D(stage + i * kBoxBytes, &params.output_grad, full, policy, 0, token, row_chunk + i);
      }
#pragma unroll
      for (int i = 0; i < Shape::kSlots; ++i) {
        if (!used[i]) continue;
        TmaLoad3D(stage + (Shape::kRowBoxes + i) * kBoxBytes, &params.input, full, policy, 0, token,
                  input_chunk[i]);
      }
      position.Advance();
    }
  }
}

// Sums kChunks chunks over a segment, from zero or, with `carry`, on top of the last one; a slot is released one step late, when its reader has ended.
// With kChunks = 0 the warpgroup has no part in the unit and only lets the slots pass.
template <int kRows, int kChunks>
__device__ __forceinline__ void Accumulate(float (&acc)[128], int step_count, bool carry,
                                           uint32_t ring,
                                           RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                           RingPosition<SddmmShape<kRows>::kStages>& position,
                                           int group) {
  using Shape = SddmmShape<kRows>;
  const uint32_t row_offset = kRows == 128 ? group * kBoxBytes : 0;
  const uint32_t input_offset = (Shape::kRowBoxes + (kRows == 128 ? 0 : group * 4)) * kBoxBytes;
  const bool signals = threadIdx.x % 32 == 0;
  int previous = 0;
  for (int step = 0; step < step_count; ++step) {
    BarrierWait(&barriers.full[position.slot], position.parity);
    if constexpr (kChunks > 0) {
      const uint32_t stage = ring + position.slot * Shape::kStageBytes;
      const uint64_t a = OperandDescriptor(stage + row_offset, kBoxBytes);
      const uint64_t b = OperandDescriptor(stage + input_offset, kBoxBytes);
      WgmmaFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        constexpr int kAdvance = kAdvanceTransposed >> 4;
        Wgmma<64 * kChunks, 1, 1>(acc, a + k * kAdvance, b + k * kAdvance,
                                 step > 0 || k > 0 || carry);
      }
      WgmmaCommit();
      WgmmaWait<1>();
    }
    if (step > 0 && signals) BarrierArrive(&barriers.empty[previous]);
    previous = position.slot;
    position.Advance();
  }
  if constexpr (kChunks > 0) WgmmaWait<0>();
  if (step_count > 0 && signals) BarrierArrive(&barriers.empty[previous]);
}

// Where this thread's accumulators 4j .. 4j + 3 go: columns c, c + 1 of row r, then of row r + 8.
template <int kRows>
__device__ __forceinline__ float* GradientAddress(float* gradient, const SddmmUnit& unit,
                                                  int block_cols, int thread, int chunk) {
  const int group = thread / kWarpgroup;
  const int slot = kRows == 128 ? chunk : group * 4 + chunk;
  const int row = (kRows == 128 ? group * 64 : 0) + (thread % kWarpgroup / 32) * 16 + thread % 32 / 4;
  return gradient + int64_t{unit.gradient_chunk[slot]} * 64 + row * block_cols + thread % 4 * 2;
}

// Eight quadruples, the part of a chunk that a thread holds, into (or onto) the gradient.
__device__ __forceinline__ void WriteChunk(float* address, int block_cols, bool add,
                                           const float* values) {
  float2 old[16] = {};
  if (add) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      old[i] = *reinterpret_cast<float2*>(address + (i % 2) * 8 * block_cols + (i / 2) * 8);
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    *reinterpret_cast<float2*>(address + (i % 2) * 8 * block_cols + (i / 2) * 8) =
        make_float2(old[i].x + values[2 * i], old[i].y + values[2 * i + 1]);
  }
}

template <int kRows>
__device__ __forceinline__ void WriteSegment(const SddmmParams& params, const float (&acc)[128],
                                             const SddmmSegment& segment, const SddmmUnit& unit,
                                             int count) {
  const int thread = threadIdx.x - kWarpgroup;
  const bool add = segment.target == kTargetGradientAdd || params.accumulate;
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    if (chunk >= count) break;
    if (segment.target >= 0) {
      float4* slot = reinterpret_cast<float4*>(params.partials + segment.target * kSddmmPartialFloats);
#pragma unroll
      for (int j = chunk * 8; j < chunk * 8 + 8; ++j) {
        slot[j * kConsumers + thread] =
            make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
      }
    } else {
      WriteChunk(GradientAddress<kRows>(params.gradient, unit, params.block_cols, thread, chunk),
                 params.block_cols, add, acc + chunk * 32);
    }
  }
}

template <int kRows>
__device__ __forceinline__ void Consume(const SddmmParams& params, uint32_t ring,
                                        RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                        int group, int begin, int end) {
  RingPosition<SddmmShape<kRows>::kStages> position;
  float acc[128];
  bool carry = false;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int count = unit.chunk_count[kRows == 128 ? 0 : group];
    const int steps = segment.step_count;
    switch (count) {
      case 0: Accumulate<kRows, 0>(acc, steps, carry, ring, barriers, position, group); break;
      case 1: Accumulate<kRows, 1>(acc, steps, carry, ring, barriers, position, group); break;
      case 2: Accumulate<kRows, 2>(acc, steps, carry, ring, barriers, position, group); break;
      case 3: Accumulate<kRows, 3>(acc, steps, carry, ring, barriers, position, group); break;
      default: Accumulate<kRows, 4>(acc, steps, carry, ring, barriers, position, group); break;
    }
    carry = segment.target == kTargetCarry;
    if (!carry) WriteSegment<kRows>(params, acc, segment, unit, count);
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    SddmmBsrKernel(const __grid_constant__ SddmmParams params) {
  using Shape = SddmmShape<kRows>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers =
      *reinterpret_cast<RingBarriers<Shape::kStages>*>(ring + Shape::kBarrierOffset);
  const int begin = __ldg(params.worker_begin + blockIdx.x);
  const int end = __ldg(params.worker_begin + blockIdx.x + 1);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.output_grad);
    PrefetchTensorMap(&params.input);
    barriers.Init(8);  // eight consumer warps
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    ReleaseRegisters<40>();
    if (threadIdx.x == 0) Produce<kRows>(params, ring, barriers, begin, end);
  } else {
    ClaimRegisters<232>();
    Consume<kRows>(params, SharedAddress(ring), barriers, warpgroup - 1, begin, end);
  }
}

// Adds the partial sums of a unit in order, then the gradient that its first segment has written. Grid: (reductions, 4 chunks); block: 256 threads, each
// with the accumulators of the consumer thread of that number. Bytes: 4 per partial value, read once.
template <int kRows>
__global__ void __launch_bounds__(kConsumers)
    SddmmReduceKernel(float* gradient, const float* partials, const SddmmUnit* units,
                      const SddmmReduction* reductions, int block_cols) {
  const SddmmReduction reduction = reductions[blockIdx.x];
  const SddmmUnit& unit = units[reduction.unit];
  const int thread = threadIdx.x;
  const int chunk = blockIdx.y;
  if (chunk >= unit.chunk_count[kRows == 128 ? 0 : thread / kWarpgroup]) return;
  float sum[32] = {};
  for (int s = 0; s < reduction.slot_count; ++s) {
    const float4* slot = reinterpret_cast<const float4*>(
        partials + (reduction.slot_begin + s) * kSddmmPartialFloats);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float4 part = slot[(chunk * 8 + j) * kConsumers + thread];
      sum[4 * j] += part.x;
      sum[4 * j + 1] += part.y;
      sum[4 * j + 2] += part.z;
      sum[4 * j + 3] += part.w;
    }
  }
  WriteChunk(GradientAddress<kRows>(gradient, unit, block_cols, thread, chunk), block_cols, true,
             sum);
}

template <int kRows>
void Launch(const SddmmParams& params, const SddmmConfig& config, const SddmmArgs& args,
            cudaStream_t stream) {
  constexpr int kSharedBytes = SddmmShape<kRows>::kSharedBytes;
  static const bool configured = [] {
    CUDA_CHECK(cudaFuncSetAttribute(SddmmBsrKernel<kRows>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  SddmmBsrKernel<kRows><<<config.workers, kThreads, kSharedBytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
  if (args.reduction_count == 0) return;
  SddmmReduceKernel<kRows><<<dim3(args.reduction_count, 4), kConsumers, 0, stream>>>(
      args.gradient, args.partials, args.units, args.reductions, params.block_cols);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

bool CanImplementSddmmBsrSm90(const SddmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0;
}

SddmmConfig ConfigSddmmBsrSm90(const SddmmDesc&, int multiprocessors) {
  return {.workers = multiprocessors};
}

void LaunchSddmmBsrSm90(const SddmmDesc& desc, const SddmmConfig& config, const SddmmArgs& args,
                        cudaStream_t stream) {
  CHECK(CanImplementSddmmBsrSm90(desc));
  SddmmParams params;
  params.output_grad =
      EncodeChunkMap(args.output_grad, desc.tokens, desc.out_features, args.output_grad_stride, 64);
  params.input = EncodeChunkMap(args.input, desc.tokens, desc.in_features, args.input_stride, 64);
  params.gradient = args.gradient;
  params.partials = args.partials;
  params.units = args.units;
  params.segments = args.segments;
  params.worker_begin = args.worker_begin;
  params.block_cols = desc.block.cols;
  params.accumulate = args.accumulate;
  if (desc.block.rows == 128) {
    Launch<128>(params, config, args, stream);
  } else {
    Launch<64>(params, config, args, stream);
  }
}

}  // namespace filigree
