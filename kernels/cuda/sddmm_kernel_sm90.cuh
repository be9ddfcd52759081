// SddmmBsrKernel: dW = dY^T X on the stored blocks, into an fp32 or bf16 gradient laid out like
// them.
//
// A tile is A^T B over the tokens: A a slice of dY, one block row wide (kWidth), and B up to four
// (kWidth = 128) or eight (kWidth = 64) chunks of 64 columns of X; or with dY and X exchanged, unit
// by unit. The chunks need not be neighbours: each is a box of its own that lands 8 KB after the
// last one, and four of them are one operand of m64n256k16. Both operands have the reduction
// (tokens) down their rows, so both are read "transposed" and nothing is ever transposed in memory.
//   kWidth = 128: the two consumer warpgroups take 64 columns of A each and share four chunks.
//   kWidth =  64: they share the slice and take up to four chunks each.
// Grid: one CTA per multiprocessor, persistent; each walks its list of segments (unit, token
// range).
//   Block: 384 threads: warpgroup 0 issues the copies, 1 and 2 multiply.
// Where the sums of dY over the tokens are wanted (a bias's gradient) and A is dY, they are eight
// more
//   columns of B, all ones: m64n8k16 beside m64n256k16, on slices that are in shared memory anyway.
//   The units of a block row share that work, so that they keep one pace.
// Shared memory: a ring of stages {A 64 tokens x kWidth, B up to 4 or 8 boxes of 64 tokens x 64},
//   then the ones and the barriers.
// Bytes from L2 per step of 64 tokens: (kWidth + 64 * chunks) * 128. FLOPs: 2 * 64 *
//   kWidth * 64 * chunks. Deterministic: where several CTAs share a unit, one adds the others'
//   partial sums to its own in a fixed order and writes the gradient, rounding it once.
#pragma once

#include <type_traits>

#include "kernels/cuda/sddmm_gradient_sm90.cuh"
#include "kernels/cuda/sddmm_pace_sm90.cuh"
#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"

namespace filigree::sm90 {

constexpr int kSddmmThreads = 384;
constexpr int kBoxBytes = 64 * 128;     // 64 tokens x 64 columns
constexpr int kOnesBytes = 16 * 8 * 2;  // a B operand of one k16 slice and 8 columns

template <int kWidth>
struct SddmmShape {
  static constexpr int kSliceBoxes = kWidth / 64;
  static constexpr int kSlots = kWidth == 128 ? 4 : 8;
  static constexpr int kStages = kWidth == 128 ? 4 : 3;
  static constexpr int kStageBytes = (kSliceBoxes + kSlots) * kBoxBytes;
  static constexpr int kOnesOffset = kStages * kStageBytes;
  static constexpr int kBarrierOffset = kOnesOffset + kOnesBytes;
  static constexpr int kSharedBytes =
      kBarrierOffset + static_cast<int>(sizeof(RingBarriers<kStages>)) + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

// `Gradient`: float or bf16.
template <typename Gradient>
struct SddmmParams {
  CUtensorMap operands[2];  // X and dY, each [chunks][tokens][64]
  int cols;                 // of a block
  Gradient* gradient;
  float* partials;
  uint32_t* arrivals;  // [partial sums][warpgroups], or nullptr: a second kernel adds them up
  const SddmmUnit* units;
  const SddmmSegment* segments;
  const int32_t* worker_begin;
  bool accumulate;
  SddmmSums<Gradient> sums;
  SddmmPace pace;
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
  // Measured on an H100: keeping B alone is as good where layouts are even, and 1 to 6 % slower
  // where they are not; slices of 64 were measured so.
  const uint64_t b_policy = PolicyEvictLast();
  const uint64_t a_policy = kWidth == 128 ? b_policy : PolicyEvictFirst();
  Pacer pacer(params.pace);
  RingPosition<Shape::kStages> position;
  position.parity = 1;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int a_operand = unit.by_rows, b_operand = 1 - a_operand;
    const CUtensorMap* a_map = &params.operands[a_operand];
    const CUtensorMap* b_map = &params.operands[b_operand];
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
      pacer.BeforeStep();
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, boxes * kBoxBytes);
#pragma unroll
      for (int i = 0; i < Shape::kSliceBoxes; ++i) {
        TmaLoad3D(stage + i * kBoxBytes, a_map, full, a_policy, 0, token, a_chunk + i);
      }
#pragma unroll
      for (int i = 0; i < Shape::kSlots; ++i) {
        if (!used[i]) continue;
        TmaLoad3D(stage + (Shape::kSliceBoxes + i) * kBoxBytes, b_map, full, b_policy, 0, token,
                  b_chunk[i]);
      }
      position.Advance();
    }
  }
  pacer.Finish();
}

struct Sums {
  float products[128];
  float columns[4];  // of A alone: of columns r and r + 8 of its 64 (sm90_wgmma.cuh), twice each
};

// Sums kChunks chunks over a segment, and A alone over kSums of every four k16 slices from
// `first_sum` on; a slot is released one step late, when its reader has ended. Without either the
// warpgroup has no part in the unit and only lets the slots pass.
template <int kWidth, int kChunks, int kSums>
__device__ __forceinline__ void Accumulate(Sums& sums, int first_sum, int step_count, uint32_t ring,
                                           RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
                                           RingPosition<SddmmShape<kWidth>::kStages>& position,
                                           int group) {
  using Shape = SddmmShape<kWidth>;
  constexpr int kAdvance = kAdvanceTransposed >> 4;
  const uint64_t ones = PlainDescriptor(ring + Shape::kOnesOffset);
  const uint32_t a_offset = kWidth == 128 ? group * kBoxBytes : 0;
  const uint32_t b_offset = (Shape::kSliceBoxes + (kWidth == 128 ? 0 : group * 4)) * kBoxBytes;
  const bool signals = threadIdx.x % 32 == 0;  // every warp releases a slot for itself
  int previous = 0;
  for (int step = 0; step < step_count; ++step) {
    BarrierWait(&barriers.full[position.slot], position.parity);
    if constexpr (kChunks + kSums > 0) {
      const uint32_t stage = ring + position.slot * Shape::kStageBytes;
      const uint64_t a = OperandDescriptor(stage + a_offset, kBoxBytes);
      const uint64_t b = OperandDescriptor(stage + b_offset, kBoxBytes);
      WgmmaFence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (kChunks > 0) {
          Wgmma<64 * kChunks, 1, 1>(sums.products, a + k * kAdvance, b + k * kAdvance,
                                    step > 0 || k > 0);
        }
      }
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        WgmmaEight<1>(sums.columns, a + (first_sum + k) * kAdvance, ones, step > 0 || k > 0);
      }
      WgmmaCommit();
      WgmmaWait<1>();
    }
    if (step > 0 && signals) BarrierArrive(&barriers.empty[previous]);
    previous = position.slot;
    position.Advance();
  }
  if constexpr (kChunks + kSums > 0) WgmmaWait<0>();
  if (step_count > 0 && signals) BarrierArrive(&barriers.empty[previous]);
}

template <int kWidth, int kSums>
__device__ __forceinline__ void AccumulateChunks(
    Sums& sums, int count, int first_sum, int steps, uint32_t ring,
    RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
    RingPosition<SddmmShape<kWidth>::kStages>& position, int group) {
  const auto accumulate = [&](auto chunks) {
    Accumulate<kWidth, chunks, kSums>(sums, first_sum, steps, ring, barriers, position, group);
  };
  switch (count) {
    case 1:
      return accumulate(std::integral_constant<int, 1>());
    case 2:
      return accumulate(std::integral_constant<int, 2>());
    case 3:
      return accumulate(std::integral_constant<int, 3>());
    default:
      return accumulate(std::integral_constant<int, 4>());
  }
}

template <int kWidth, typename Gradient>
__device__ __forceinline__ void Consume(const SddmmParams<Gradient>& params, uint32_t ring,
                                        RingBarriers<SddmmShape<kWidth>::kStages>& barriers,
                                        int group, int begin, int end) {
  RingPosition<SddmmShape<kWidth>::kStages> position;
  Sums sums;
  for (int index = begin; index < end; ++index) {
    const SddmmSegment segment = LoadSegment(params.segments, index);
    const SddmmUnit& unit = params.units[segment.unit];
    const int count = unit.chunk_count[kWidth == 128 ? 0 : group];
    const int steps = segment.step_count;
    const bool sums_columns =
        params.sums.out != nullptr && unit.sum_count[0] + unit.sum_count[1] > 0;
    const int first_sum = unit.sum_first[group];
    const auto accumulate = [&](auto slices) {
      AccumulateChunks<kWidth, slices>(sums, count, first_sum, steps, ring, barriers, position,
                                       group);
    };
    if (sums_columns) {
#pragma unroll
      for (float& column : sums.columns) column = 0;
    }
    const int sum_count = sums_columns ? unit.sum_count[group] : 0;
    if (count == 0 && sum_count == 0) {
      Accumulate<kWidth, 0, 0>(sums, 0, steps, ring, barriers, position, group);
    } else if (count == 0) {  // a block row without blocks
      Accumulate<kWidth, 0, 4>(sums, 0, steps, ring, barriers, position, group);
    } else {
      switch (sum_count) {
        case 0:
          accumulate(std::integral_constant<int, 0>());
          break;
        case 1:
          accumulate(std::integral_constant<int, 1>());
          break;
        case 2:
          accumulate(std::integral_constant<int, 2>());
          break;
        default:
          accumulate(std::integral_constant<int, 4>());
          break;
      }
    }
    if (sums_columns) WriteColumnSums(sums.columns, params.sums.partials, index);
    if (segment.target == kTargetGradient) {
      WriteGradient<kWidth>(sums.products, params.gradient, params.partials, params.arrivals, unit,
                            count, group, params.cols, params.accumulate);
    } else {
      WritePartial(sums.products, params.partials, params.arrivals, segment.target, count, group);
    }
  }
}

template <int kWidth, typename Gradient>
__global__ void __launch_bounds__(kSddmmThreads, 1)
    SddmmBsrKernel(const __grid_constant__ SddmmParams<Gradient> params) {
  using Shape = SddmmShape<kWidth>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers = *reinterpret_cast<RingBarriers<Shape::kStages>*>(ring + Shape::kBarrierOffset);
  const int begin = __ldg(params.worker_begin + blockIdx.x);
  const int end = __ldg(params.worker_begin + blockIdx.x + 1);
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.operands[0]);
    PrefetchTensorMap(&params.operands[1]);
    barriers.Init(8);  // eight consumer warps
  }
  if (threadIdx.x < kOnesBytes / 4) {
    reinterpret_cast<uint32_t*>(ring + Shape::kOnesOffset)[threadIdx.x] = 0x3F803F80;  // bf16 ones
    FenceProxyAsync();
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

}  // namespace filigree::sm90
