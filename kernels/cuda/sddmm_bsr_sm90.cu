// SddmmBsrKernel: dW = dY^T X on the stored blocks, into an fp32 gradient laid out like the blocks.
//
// A CTA computes one block row times up to four (kRows = 128) or eight (kRows = 64) chunks of 64 input
// columns. The chunks need not be neighbours in X: each is a box of its own that lands 8 KB after the
// last one, and four of them are one operand of m64n256k16. Both operands have the reduction (tokens)
// down their rows, so both are read "transposed" and nothing is ever transposed in memory.
//   kRows = 128: the two consumer warpgroups take 64 rows each and share four chunks.
//   kRows =  64: they share the rows and take up to four chunks each.
// Grid: one CTA per multiprocessor, persistent; each cluster walks its list of segments (unit, token
//   range). A cluster of two takes eight chunks of one block row: each CTA loads half of the dY slice
//   and multicasts it. Block: 384 threads: warpgroup 0 issues the copies, 1 and 2 multiply.
// Shared memory: a ring of stages {dY 64 tokens x kRows, X up to 4 or 8 boxes of 64 tokens x 64},
//   then barriers.
// Bytes from L2 per step of 64 tokens: (kRows / kCluster + 64 * chunks) * 128. FLOPs: 2 * 64 * kRows * 64 *
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

template <int kRows, int kCluster>
__device__ __forceinline__ void Produce(const SddmmParams& params, uint8_t* ring,
                                        RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                        uint32_t rank, int begin, int end) {
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
      const int slot = rank * Shape::kSlots + i;
      used[i] = slot % 4 < unit.chunk_count[slot / 4];
      input_chunk[i] = unit.input_chunk[slot];
      boxes += used[i];
    }
    for (int step = 0; step < segment.step_count; ++step) {
      const int token = segment.token_begin + step * 64;
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* stage = ring + position.slot * Shape::kStageBytes;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, boxes * kBoxBytes);
      if constexpr (kCluster == 1) {
#pragma unroll
        for (int i = 0; i < Shape::kRowBoxes; ++i) {
          TmaLoad3D(stage + i * kBoxBytes, &params.output_grad, full, policy, 0, token,
                    row_chunk + i);
        }
      } else {
        constexpr uint16_t kEveryCta = (1 << kCluster) - 1;
        TmaLoadMulticast3D(stage + rank * kBoxBytes, &params.output_grad, full, kEveryCta, policy, 0,
                           token, row_chunk + rank);
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

// Every warp releases a slot for itself, in every CTA whose copies fill it.
template <int kCluster>
__device__ __forceinline__ void Release(uint64_t* empty) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (kCluster == 1) {
    if (lane == 0) BarrierArrive(empty);
  } else {
    if (lane < kCluster) BarrierArriveCluster(empty, lane);
  }
}

// Sums kChunks chunks over a segment, from zero or, with `carry`, on top of the last one; a slot is released one step late, when its reader has ended.
// With kChunks = 0 the warpgroup has no part in the unit and only lets the slots pass.
template <int kRows, int kCluster, int kChunks>
__device__ __forceinline__ void Accumulate(float (&acc)[128], int step_count, bool carry,
                                           uint32_t ring,
                                           RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                           RingPosition<SddmmShape<kRows>::kStages>& position,
                                           int group) {
  using Shape = SddmmShape<kRows>;
  const uint32_t row_offset = kRows == 128 ? group * kBoxBytes : 0;
  const uint32_t input_offset = (Shape::kRowBoxes + (kRows == 128 ? 0 : group * 4)) * kBoxBytes;
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
    if (step > 0) Release<kCluster>(&barriers.empty[previous]);
    previous = position.slot;
    position.Advance();
  }
  if constexpr (kChunks > 0) WgmmaWait<0>();
  if (step_count > 0) Release<kCluster>(&barriers.empty[previous]);
}

// Where this thread's accumulators 4j .. 4j + 3 go: columns c, c + 1 of row r, then of row r + 8.
template <int kRows>
__device__ __forceinline__ float* GradientAddress(float* gradient, const SddmmUnit& unit,
                                                  int block_cols, int rank, int thread, int chunk) {
  const int group = thread / kWarpgroup;
  const int slot = (kRows == 128 ? rank : group) * 4 + chunk;
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

template <int kRows, int kCluster>
__device__ __forceinline__ void WriteSegment(const SddmmParams& params, const float (&acc)[128],
                                             const SddmmSegment& segment, const SddmmUnit& unit,
                                             int rank, int count) {
  const int thread = threadIdx.x - kWarpgroup;
  const bool add = segment.target == kTargetGradientAdd || params.accumulate;
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    if (chunk >= count) break;
    if (segment.target >= 0) {
      float4* slot = reinterpret_cast<float4*>(
          params.partials + (segment.target * kCluster + rank) * kSddmmPartialFloats);
#pragma unroll
      for (int j = chunk * 8; j < chunk * 8 + 8; ++j) {
        slot[j * kConsumers + thread] =
            make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
      }
    } else {
      WriteChunk(GradientAddress<kRows>(params.gradient, unit, params.block_cols, rank, thread, chunk),
                 params.block_cols, add, acc + chunk * 32);
    }
  }
}

template <int kRows, int kCluster>
__device__ __forceinline__ void Consume(const SddmmParams& params, uint32_t ring,
                                        RingBarriers<SddmmShape<kRows>::kStages>& barriers,
                                        int rank, int group, int begin, int end) {
  RingPosition<SddmmShape<kRows>::kStages> position;
  float acc[128];
  bool carry = false;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int count = unit.chunk_count[kRows == 128 ? rank : group];
    const int steps = segment.step_count;
    switch (count) {
      case 0: Accumulate<kRows, kCluster, 0>(acc, steps, carry, ring, barriers, position, group); break;
      case 1: Accumulate<kRows, kCluster, 1>(acc, steps, carry, ring, barriers, position, group); break;
      case 2: Accumulate<kRows, kCluster, 2>(acc, steps, carry, ring, barriers, position, group); break;
      case 3: Accumulate<kRows, kCluster, 3>(acc, steps, carry, ring, barriers, position, group); break;
      default: Accumulate<kRows, kCluster, 4>(acc, steps, carry, ring, barriers, position, group); break;
    }
    carry = segment.target == kTargetCarry;
    if (!carry) WriteSegment<kRows, kCluster>(params, acc, segment, unit, rank, count);
  }
}

template <int kRows, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    SddmmBsrKernel(const __grid_constant__ SddmmParams params) {
  using Shape = SddmmShape<kRows>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers =
      *reinterpret_cast<RingBarriers<Shape::kStages>*>(ring + Shape::kBarrierOffset);
  const uint32_t rank = kCluster == 1 ? 0 : ClusterCtaRank();
  const int begin = __ldg(params.worker_begin + blockIdx.x / kCluster);
  const int end = __ldg(params.worker_begin + blockIdx.x / kCluster + 1);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.output_grad);
    PrefetchTensorMap(&params.input);
    barriers.Init(8 * kCluster);  // eight consumer warps in each CTA
  }
  if constexpr (kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    ReleaseRegisters<40>();
    if (threadIdx.x == 0) Produce<kRows, kCluster>(params, ring, barriers, rank, begin, end);
    __syncwarp();
  } else {
    ClaimRegisters<232>();
    Consume<kRows, kCluster>(params, SharedAddress(ring), barriers, rank, warpgroup - 1, begin,
                             end);
  }
  // A CTA must not leave while the other may still signal its barriers.
  if constexpr (kCluster > 1) ClusterSync();
}

// Adds the partial sums of a unit in order, then the gradient that its first segment has written.
// Grid: (reductions, 32 quadruples of accumulators, CTAs of a worker); block: 256 threads, each for
// the consumer thread of that number. Bytes: 4 per partial value, read once.
template <int kRows>
__global__ void __launch_bounds__(kConsumers)
    SddmmReduceKernel(float* gradient, const float* partials, const SddmmUnit* units,
                      const SddmmReduction* reductions, int block_cols) {
  const SddmmReduction reduction = reductions[blockIdx.x];
  const SddmmUnit& unit = units[reduction.unit];
  const int thread = threadIdx.x;
  const int chunk = blockIdx.y / 8;
  const int rank = blockIdx.z;
  if (chunk >= unit.chunk_count[kRows == 128 ? rank : thread / kWarpgroup]) return;
  const float4* part = reinterpret_cast<const float4*>(
      partials + (int64_t{reduction.slot_begin} * gridDim.z + rank) * kSddmmPartialFloats);
  part += blockIdx.y * kConsumers + thread;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int s = 0; s < reduction.slot_count; ++s) {
    const float4 value = part[int64_t{s} * gridDim.z * (kSddmmPartialFloats / 4)];
    sum.x += value.x;
    sum.y += value.y;
    sum.z += value.z;
    sum.w += value.w;
  }
  float* address = GradientAddress<kRows>(gradient, unit, block_cols, rank, thread, chunk) +
                   blockIdx.y % 8 * 8;
  float2* upper = reinterpret_cast<float2*>(address);
  float2* lower = reinterpret_cast<float2*>(address + 8 * block_cols);
  const float2 old_upper = *upper, old_lower = *lower;
  *upper = make_float2(old_upper.x + sum.x, old_upper.y + sum.y);
  *lower = make_float2(old_lower.x + sum.z, old_lower.y + sum.w);
}

template <int kRows, int kCluster>
void Launch(const SddmmParams& params, const SddmmConfig& config, const SddmmArgs& args,
            cudaStream_t stream) {
  constexpr int kSharedBytes = SddmmShape<kRows>::kSharedBytes;
  const auto kernel = SddmmBsrKernel<kRows, kCluster>;
  static const bool configured = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  cudaLaunchConfig_t launch = {};
  launch.gridDim = config.tiling.workers * kCluster;
  launch.blockDim = kThreads;
  launch.dynamicSmemBytes = kSharedBytes;
  launch.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kCluster, 1, 1};
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&launch, kernel, params));
  if (args.reduction_count == 0) return;
  SddmmReduceKernel<kRows><<<dim3(args.reduction_count, 32, kCluster), kConsumers, 0, stream>>>(
      args.gradient, args.partials, args.units, args.reductions, params.block_cols);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

bool CanImplementSddmmBsrSm90(const SddmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0;
}

SddmmConfig ConfigSddmmBsrSm90(const SddmmDesc& desc, int multiprocessors) {
  SddmmConfig config;
  config.tiling.cluster = desc.block.rows == 128 ? 2 : 1;
  config.tiling.workers = multiprocessors / config.tiling.cluster;
  return config;
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
  if (desc.block.rows == 64) {
    Launch<64, 1>(params, config, args, stream);
  } else if (config.tiling.cluster == 1) {
    Launch<128, 1>(params, config, args, stream);
  } else {
    Launch<128, 2>(params, config, args, stream);
  }
}

}  // namespace filigree
