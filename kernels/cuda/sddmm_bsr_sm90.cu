// SddmmBsrKernel: dW = dY^T X on the stored blocks, into an fp32 or bf16 gradient laid out like them.
//
// A tile is A^T B over the tokens: A a slice of dY, one block row wide (kWidth), and B up to four
// (kWidth = 128) or eight (kWidth = 64) chunks of 64 columns of X; or with dY and X exchanged. The
// chunks need not be neighbours: each is a box of its own that lands 8 KB after the last one, and four
// of them are one operand of m64n256k16. Both operands have the reduction (tokens) down their rows, so
// both are read "transposed" and nothing is ever transposed in memory.
//   kWidth = 128: the two consumer warpgroups take 64 columns of A each and share four chunks.
//   kWidth =  64: they share the slice and take up to four chunks each.
// Grid: one CTA per multiprocessor, persistent; each walks its list of segments (unit, token range).
//   Block: 384 threads: warpgroup 0 issues the copies, 1 and 2 multiply.
// Shared memory: a ring of stages {A 64 tokens x kWidth, B up to 4 or 8 boxes of 64 tokens x 64},
//   then barriers.
// Bytes from L2 per step of 64 tokens: (kWidth + 64 * chunks) * 128. FLOPs: 2 * 64 *
//   kWidth * 64 * chunks. Deterministic: where several CTAs share a unit, one writes the gradient and
//   the others partial sums, which SddmmReduceKernel adds in a fixed order; where the gradient is bf16
//   all of them write partial sums, and it is rounded once.
#include <algorithm>
#include <type_traits>

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
using bf16 = __nv_bfloat16;
constexpr int kBoxBytes = 64 * 128;  // 64 tokens x 64 columns

template <int kWidth>
struct SddmmShape {
  static constexpr int kSliceBoxes = kWidth / 64;
  static constexpr int kSlots = kWidth == 128 ? 4 : 8;
  static constexpr int kStages = kWidth == 128 ? 4 : 3;
  static constexpr int kStageBytes = (kSliceBoxes + kSlots) * kBoxBytes;
  static constexpr int kBarrierOffset = kStages * kStageBytes;
  static constexpr int kSharedBytes =
      kBarrierOffset + static_cast<int>(sizeof(RingBarriers<kStages>)) + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

// Elements between neighbours along A and along B within a chunk of the gradient; one of them is 1.
struct GradientStrides {
  int a, b;
};

// `Gradient`: float or bf16.
template <typename Gradient>
struct SddmmParams {
  CUtensorMap a;  // [chunks][tokens][64]
  CUtensorMap b;  // [chunks][tokens][64]
  Gradient* gradient;
  float* partials;
  const SddmmUnit* units;
  const SddmmSegment* segments;
  const int32_t* worker_begin;
  GradientStrides strides;
  bool accumulate;
};

__device__ __forceinline__ SddmmSegment LoadSegment(const SddmmSegment* segments, int index) {
  const int4 raw = __ldg(reinterpret_cast<const int4*>(segments) + index);
  return {raw.x, raw.y, raw.z, raw.w};
}

template <int kWidth, typename Gradient>
__device__ __forceinline__ void Produce(const SddmmParams<Gradient>& params, uint8_t* ring,
                                        RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
                                        int begin, int end) {
  using Shape = SddmmShape<kWidth>;
  // Tuned on an H100: every B column is met by many A slices, an A slice only by a few units.
  const uint64_t a_policy = PolicyEvictFirst();
  const uint64_t b_policy = PolicyEvictLast();
  RingPosition<Shape::kStages> position;
  position.parity = 1;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int a_chunk = unit.a_chunk;
    int b_chunk[Shape::kSlots];
    bool used[Shape::kSlots];
    int boxes = Shape::kSliceBoxes;
#pragma unroll
    for (int i = 0; i < Shape::kSlots; ++i) {
      used[i] = i % 4 < unit.chunk_count[i / 4];
      b_chunk[i] = unit.b_chunk[i];
      boxes += used[i];
    }
    for (int step = 0; step < segment.step_count; ++step) {
      const int token = segment.token_begin + step * 64;
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* stage = ring + position.slot * Shape::kStageBytes;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, boxes * kBoxBytes);
#pragma unroll
      for (int i = 0; i < Shape::kSliceBoxes; ++i) {
        TmaLoad3D(stage + i * kBoxBytes, &params.a, full, a_policy, 0, token, a_chunk + i);
      }
#pragma unroll
      for (int i = 0; i < Shape::kSlots; ++i) {
        if (!used[i]) continue;
        TmaLoad3D(stage + (Shape::kSliceBoxes + i) * kBoxBytes, &params.b, full, b_policy, 0, token,
                  b_chunk[i]);
      }
      position.Advance();
    }
  }
}

// Sums kChunks chunks over a segment; a slot is released one step late, when its reader has ended.
// With kChunks = 0 the warpgroup has no part in the unit and only lets the slots pass.
template <int kWidth, int kChunks>
__device__ __forceinline__ void Accumulate(float (&acc)[128], int step_count, uint32_t ring,
                                           RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
                                           RingPosition<SddmmShape<kWidth>::kStages>& position,
                                           int group) {
  using Shape = SddmmShape<kWidth>;
  const uint32_t a_offset = kWidth == 128 ? group * kBoxBytes : 0;
  const uint32_t b_offset = (Shape::kSliceBoxes + (kWidth == 128 ? 0 : group * 4)) * kBoxBytes;
  const bool signals = threadIdx.x % 32 == 0;  // every warp releases a slot for itself
  int previous = 0;
  for (int step = 0; step < step_count; ++step) {
    BarrierWait(&barriers.full[position.slot], position.parity);
    if constexpr (kChunks > 0) {
      const uint32_t stage = ring + position.slot * Shape::kStageBytes;
      const uint64_t a = OperandDescriptor(stage + a_offset, kBoxBytes);
      const uint64_t b = OperandDescriptor(stage + b_offset, kBoxBytes);
      WgmmaFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        constexpr int kAdvance = kAdvanceTransposed >> 4;
        Wgmma<64 * kChunks, 1, 1>(acc, a + k * kAdvance, b + k * kAdvance,
                                 step > 0 || k > 0);
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

// Where this thread's accumulators 4j .. 4j + 3 go: (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1).
template <int kWidth, typename Gradient>
__device__ __forceinline__ Gradient* GradientAddress(Gradient* gradient, const SddmmUnit& unit,
                                                     GradientStrides strides, int thread,
                                                     int chunk) {
  const int group = thread / kWarpgroup;
  const int slot = (kWidth == 128 ? 0 : group * 4) + chunk;
  const int r = (kWidth == 128 ? group * 64 : 0) + (thread % kWarpgroup / 32) * 16 + thread % 32 / 4;
  const int c = thread % 4 * 2;
  return gradient + int64_t{unit.gradient_chunk[slot]} * 64 + r * strides.a + c * strides.b;
}

// Gradients pass through fp32, one or two neighbours at a time.
__device__ __forceinline__ float Read(const float* from) { return *from; }
__device__ __forceinline__ float Read(const bf16* from) { return __bfloat162float(*from); }
__device__ __forceinline__ void Write(float* to, float value) { *to = value; }
__device__ __forceinline__ void Write(bf16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ float2 ReadPair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ __forceinline__ float2 ReadPair(const bf16* from) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}
__device__ __forceinline__ void WritePair(float* to, float2 pair) {
  *reinterpret_cast<float2*>(to) = pair;
}
__device__ __forceinline__ void WritePair(bf16* to, float2 pair) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(pair);
}

// `count` quadruples, eight columns of B apart, into (or onto) the gradient.
template <int kCount, typename Gradient>
__device__ __forceinline__ void WriteQuadruples(Gradient* address, GradientStrides strides, bool add,
                                                const float* values) {
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

template <int kWidth, typename Gradient>
__device__ __forceinline__ void WriteSegment(const SddmmParams<Gradient>& params,
                                             const float (&acc)[128], const SddmmSegment& segment,
                                             const SddmmUnit& unit, int count) {
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
      WriteQuadruples<8>(
          GradientAddress<kWidth>(params.gradient, unit, params.strides, thread, chunk),
          params.strides, add, acc + chunk * 32);
    }
  }
}

template <int kWidth, typename Gradient>
__device__ __forceinline__ void Consume(const SddmmParams<Gradient>& params, uint32_t ring,
                                        RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
                                        int group, int begin, int end) {
  RingPosition<SddmmShape<kWidth>::kStages> position;
  float acc[128];
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int count = unit.chunk_count[kWidth == 128 ? 0 : group];
    const int steps = segment.step_count;
    switch (count) {
      case 0: Accumulate<kWidth, 0>(acc, steps, ring, barriers, position, group); break;
      case 1: Accumulate<kWidth, 1>(acc, steps, ring, barriers, position, group); break;
      case 2: Accumulate<kWidth, 2>(acc, steps, ring, barriers, position, group); break;
      case 3: Accumulate<kWidth, 3>(acc, steps, ring, barriers, position, group); break;
      default: Accumulate<kWidth, 4>(acc, steps, ring, barriers, position, group); break;
    }
    WriteSegment<kWidth>(params, acc, segment, unit, count);
  }
}

template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kThreads, 1)
    SddmmBsrKernel(const __grid_constant__ SddmmParams<Gradient> params) {
  using Shape = SddmmShape<kWidth>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers =
      *reinterpret_cast<RingBarriers<Shape::kStages>*>(ring + Shape::kBarrierOffset);
  const int begin = __ldg(params.worker_begin + blockIdx.x);
  const int end = __ldg(params.worker_begin + blockIdx.x + 1);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.a);
    PrefetchTensorMap(&params.b);
    barriers.Init(8);  // eight consumer warps
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    ReleaseRegisters<56>();
    if (threadIdx.x == 0) Produce<kWidth>(params, ring, barriers, begin, end);
  } else {
    ClaimRegisters<224>();
    Consume<kWidth>(params, SharedAddress(ring), barriers, warpgroup - 1, begin, end);
  }
}

// Adds the partial sums of a unit in order, and with `add` what the gradient holds: what its first
// segment has written (fp32), or what the call is to add to.
// Grid: (reductions, 32 quadruples of accumulators); block: 256 threads, each for the consumer thread
// of that number. Bytes: 4 per partial value, read once.
template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kConsumers)
    SddmmReduceKernel(Gradient* gradient, const float* partials, const SddmmUnit* units,
                      const SddmmReduction* reductions, GradientStrides strides, bool add) {
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

template <int kWidth, typename Gradient>
void Launch(const SddmmParams<Gradient>& params, const SddmmConfig& config,
            const SddmmKernelArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = SddmmShape<kWidth>::kSharedBytes;
  const auto kernel = SddmmBsrKernel<kWidth, Gradient>;
  static const bool configured = [kernel] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  kernel<<<config.workers, kThreads, kSharedBytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
  if (args.reduction_count == 0) return;
  // In fp32 a unit's first segment wrote the gradient (or onto it), in bf16 none did.
  const bool add = std::is_same_v<Gradient, float> || args.accumulate;
  SddmmReduceKernel<kWidth><<<dim3(args.reduction_count, 32), kConsumers, 0, stream>>>(
      params.gradient, args.partials, args.units, args.reductions, params.strides, add);
  CUDA_CHECK(cudaGetLastError());
}

template <typename Gradient>
void Launch(const SddmmDesc& desc, const SddmmConfig& config, const SddmmKernelArgs& args,
            cudaStream_t stream) {
  const CUtensorMap output_grad =
      EncodeChunkMap(args.output_grad, desc.tokens, desc.out_features, args.output_grad_stride, 64);
  const CUtensorMap input =
      EncodeChunkMap(args.input, desc.tokens, desc.in_features, args.input_stride, 64);
  const bool by_rows = args.orientation == SddmmOrientation::kRows;
  SddmmParams<Gradient> params;
  params.a = by_rows ? output_grad : input;
  params.b = by_rows ? input : output_grad;
  params.gradient = static_cast<Gradient*>(args.gradient);
  params.partials = args.partials;
  params.units = args.units;
  params.segments = args.segments;
  params.worker_begin = args.worker_begin;
  params.strides = by_rows ? GradientStrides{desc.block.cols, 1} : GradientStrides{1, desc.block.cols};
  params.accumulate = args.accumulate;
  if (std::max(desc.block.rows, desc.block.cols) == 64) {
    Launch<64>(params, config, args, stream);
  } else {
    Launch<128>(params, config, args, stream);
  }
}

}  // namespace

bool CanImplementSddmmBsrSm90(const SddmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0 &&
         (desc.gradient_dtype == DType::kF32 || desc.gradient_dtype == DType::kBF16);
}

SddmmConfig ConfigSddmmBsrSm90(const SddmmDesc&, int multiprocessors) {
  return {.workers = multiprocessors};
}

void LaunchSddmmBsrSm90(const SddmmDesc& desc, const SddmmConfig& config, const SddmmKernelArgs& args,
                        cudaStream_t stream) {
  CHECK(CanImplementSddmmBsrSm90(desc));
  if (desc.gradient_dtype == DType::kBF16) {
    Launch<bf16>(desc, config, args, stream);
  } else {
    Launch<float>(desc, config, args, stream);
  }
}

}  // namespace filigree
