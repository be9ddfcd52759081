// SpmmBsrKernel: Y = X W^T (kTransposed = 0) or dX = dY W (kTransposed = 1), W in stored blocks.
// Thin factors beside W, Y += U B^T or dX += U A, are more steps of the same sums, from other maps.
//
// It computes the transposed tile D^T = A B^T with A a slice of a weight block (M = output
// features) and B rows of the input (N = tokens): sparsity then lies on M, where a warpgroup is 64
// wide, and the instruction is m64n256k16, the one that reads the least shared memory per product.
//   kFeatures = 128: the two consumer warpgroups take 64 features each and share 256 tokens.
//   kFeatures =  64: they share the 64 features and take 256 tokens each.
// Grid: one CTA per multiprocessor, persistent, in clusters of kCluster along the tokens; all CTAs
//   of a cluster walk the same block row, load kFeatures / kCluster rows of each weight slice and
//   multicast them. Block: 384 threads: warpgroups 1 and 2 multiply; of warpgroup 0, warp 0 issues
//   the copies into the ring, warps 1 and 2 those to and from the buffers of a consumer warpgroup
//   each.
// Shared memory: a ring of stages {weight kFeatures x 128 B, input tokens x 128 B}, one reduction
//   step of 64 each; then each consumer warpgroup's buffers (spmm_ship_sm90.cuh) and codes; then
//   barriers. SpmmForm says how many of each.
//   The warpgroups share stages but never wait for each other.
// Bytes from L2 per step: (kFeatures / kCluster + tokens) * 128. FLOPs per step:
//   2 * 64 * kFeatures * tokens. Device memory: X and Y once each, W once per token group.
#pragma once

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"
#include "kernels/cuda/spmm_epilogue_sm90.cuh"
#include "kernels/cuda/spmm_shape_sm90.cuh"
#include "kernels/cuda/spmm_ship_sm90.cuh"
#include "kernels/cuda/spmm_swiglu_sm90.cuh"

namespace filigree::sm90 {

// An empty row takes one step of zeros: both slices lie outside their operands, where the copy
// engine reads nothing and writes zeros. (Clearing the accumulators instead costs every tile 128
// selects.)
__device__ __forceinline__ int StepsOf(const SpmmTile& tile) { return max(tile.step_count, 1); }

__device__ __forceinline__ SpmmStep LoadStep(const SpmmParams& params, const SpmmTile& tile,
                                             int i) {
  constexpr int kOutside = 0x7FFF;  // chunk; more than any input has
  if (tile.step_count == 0) return {kOutside << 15, 0, kOutside};
  const int2 raw = __ldg(reinterpret_cast<const int2*>(params.steps) + tile.step_begin + i);
  return {raw.x, static_cast<int16_t>(raw.y), static_cast<int16_t>(raw.y >> 16)};
}

// This CTA's share of a weight slice, kFeatures / kCluster lines, sent to the whole cluster. Line q
// of the slice is stored row q (forward), or row q % 64 of chunk q / 64 (transposed). A slice of a
// factor differs by its map alone.
template <bool kTransposed, int kFeatures, int kCluster>
__device__ __forceinline__ void LoadWeight(const CUtensorMap* map, uint8_t* destination,
                                           uint64_t* barrier, uint64_t policy, uint32_t rank,
                                           const SpmmStep& step) {
  constexpr int kLines = kFeatures / kCluster;
  constexpr int kBoxLines = kLines < 64 ? kLines : 64;
#pragma unroll
  for (int i = 0; i < kLines; i += kBoxLines) {
    const int line = static_cast<int>(rank) * kLines + i;
    const int row = step.weight_row + (kTransposed ? line % 64 : line);
    const int chunk = step.weight_chunk + (kTransposed ? line / 64 : 0);
    uint8_t* target = destination + line * kLineBytes;
    if constexpr (kCluster == 1) {
      TmaLoad3D(target, map, barrier, policy, 0, row, chunk);
    } else {
      constexpr uint16_t kEveryCta = (1 << kCluster) - 1;
      TmaLoadMulticast3D(target, map, barrier, kEveryCta, policy, 0, row, chunk);
    }
  }
}

// One thread issues every copy into the ring. It knows the next step, of the next tile too, before
// it needs it: a look into a list takes as long as a step.
template <bool kTransposed, typename Shape, int kCluster>
__device__ __forceinline__ void Produce(const SpmmParams& params, uint8_t* ring,
                                        RingBarriers<Shape::kStages>& barriers, uint32_t rank,
                                        int tile_begin, int tile_end) {
  if (tile_begin == tile_end) return;
  const uint64_t weight_policy = PolicyEvictLast();
  const uint64_t input_policy = PolicyEvictLast();
  RingPosition<Shape::kStages> position;
  position.parity = 1;
  SpmmTile tile = LoadTile(params.tiles, tile_begin);
  SpmmStep step = LoadStep(params, tile, 0);
  for (int index = tile_begin; index < tile_end; ++index) {
    const SpmmTile next_tile = LoadTile(params.tiles, min(index + 1, tile_end - 1));
    const int token = tile.token_begin + static_cast<int>(rank) * Shape::kTokens;
    const int steps = StepsOf(tile);
    for (int i = 0; i < steps; ++i) {
      const SpmmStep next =
          i + 1 < steps ? LoadStep(params, tile, i + 1) : LoadStep(params, next_tile, 0);
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* weight = ring + position.slot * Shape::kStageBytes;
      uint8_t* input = weight + Shape::kWeightBytes;
      const bool factor = step.input_chunk < 0;
      const CUtensorMap* input_map = factor ? &params.inner : &params.input;
      const int input_chunk = factor ? ~step.input_chunk : step.input_chunk;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, Shape::kStageBytes);
      LoadWeight<kTransposed, Shape::kFeatures, kCluster>(factor ? &params.factors : &params.weight,
                                                   weight, full, weight_policy, rank, step);
#pragma unroll
      for (int t = 0; t < Shape::kTokens; t += 256) {
        TmaLoad3D(input + t * kLineBytes, input_map, full, input_policy, 0, token + t, input_chunk);
      }
      step = next;
      position.Advance();
    }
    tile = next_tile;
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

// Sums one tile into the accumulators. A slot is released as soon as its products have ended; what
// the tensor cores miss by that, the other warpgroup's products fill. What the next step needs is
// looked up while a step's products run.
template <bool kTransposed, typename Shape, int kCluster>
__device__ __forceinline__ void Accumulate(float (&acc)[128], int step_count, uint32_t ring,
                                           RingBarriers<Shape::kStages>& barriers,
                                           RingPosition<Shape::kStages>& position, int group) {
  constexpr int kAdvance = kTransposed ? kAdvanceTransposed : kAdvanceKMajor;
  // Which half of which operand is this warpgroup's.
  const uint32_t weight_offset = Shape::kFeatures == 128 ? group * 64 * kLineBytes : 0;
  const uint32_t input_offset =
      Shape::kWeightBytes + (Shape::kFeatures == 128 ? 0 : group * 256 * kLineBytes);
  const uint64_t first_a = OperandDescriptor(ring + weight_offset, 0);
  const uint64_t first_b = OperandDescriptor(ring + input_offset, 0);
  bool full = BarrierPassed(&barriers.full[position.slot], position.parity);
  for (int step = 0; step < step_count; ++step) {
    const uint64_t a = first_a + position.slot * (Shape::kStageBytes >> 4);
    const uint64_t b = first_b + position.slot * (Shape::kStageBytes >> 4);
    uint64_t* empty = &barriers.empty[position.slot];
    if (!full) BarrierWait(&barriers.full[position.slot], position.parity);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<256, kTransposed, 0>(acc, a + k * (kAdvance >> 4), b + k * (kAdvanceKMajor >> 4),
                                 step > 0 || k > 0);
    }
    WgmmaCommit();
    position.Advance();
    full = step + 1 < step_count && BarrierPassed(&barriers.full[position.slot], position.parity);
    WgmmaWait<0>();
    Release<kCluster>(empty);
  }
}

// Tells the compiler that the sums are no longer needed. Where tiles end in different ways, it else
// carries them from either end to the next products, which it then takes one by one.
__device__ __forceinline__ void Forget(float (&acc)[128]) {
#pragma unroll
  for (int i = 0; i < 128; ++i) asm volatile("" : "=f"(acc[i]));
}

template <bool kTransposed, typename Shape, int kCluster, SpmmFinish kFinish>
__device__ __forceinline__ void Consume(const SpmmParams& params, uint8_t* ring, uint8_t* buffers,
                                        SpmmBarriers<Shape>& barriers, uint32_t rank, int group,
                                        int tile_begin, int tile_end) {
  if (tile_begin == tile_end) return;
  RingPosition<Shape::kStages> position;
  SpmmTile tile = LoadTile(params.tiles, tile_begin);
  float acc[128];
  for (int index = tile_begin; index < tile_end; ++index) {
    // What is needed after the products is loaded before them.
    const SpmmTile next = LoadTile(params.tiles, min(index + 1, tile_end - 1));
    const SpmmPart part = PartOf<Shape>(tile, rank, group);
    const FeatureBias<!IsGeluBackward(kFinish)> bias(params, part);
    if constexpr (kFinish == SpmmFinish::kSwiGlu) Forget(acc);
    Accumulate<kTransposed, Shape, kCluster>(acc, StepsOf(tile), SharedAddress(ring),
                                                 barriers.ring, position, group);
    if constexpr (kFinish == SpmmFinish::kSwiGluBackward) {
      WriteSwiGluTile<Shape>(acc, buffers, barriers.store[group], index - tile_begin);
    } else if constexpr (kFinish == SpmmFinish::kSwiGlu) {
      const int number = index - tile_begin;
      if (number % 2 == 0) {
        WriteGateTile<Shape>(params, acc, bias, buffers, barriers.store[group], number / 2, part);
      } else {
        WriteUpTile<Shape>(acc, bias, buffers, barriers.store[group], number / 2);
      }
    } else {
      WriteTile<Shape, kFinish>(params, acc, bias, buffers, barriers.store[group],
                                index - tile_begin, part);
    }
    tile = next;
  }
}

template <bool kTransposed, int kFeatures, int kCluster, SpmmFinish kFinish, SpmmForm kForm>
__global__ void __launch_bounds__(kSpmmThreads, 1)
    SpmmBsrKernel(const __grid_constant__ SpmmParams params) {
  using Shape = SpmmShape<kFeatures, kForm>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers = *reinterpret_cast<SpmmBarriers<Shape>*>(ring + Shape::kBarrierOffset);
  const auto buffers = [ring](int group) {
    return ring + Shape::kRingBytes + group * Shape::kGroupBytes;
  };
  // Through a shuffle the compiler sees that a warp has one value, and keeps descriptors uniform.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpgroup, 0);
  const uint32_t rank = kCluster == 1 ? 0 : ClusterCtaRank();
  const int worker = blockIdx.x / kCluster;
  const int tile_begin = __ldg(params.worker_begin + worker);
  const int tile_end = __ldg(params.worker_begin + worker + 1);

  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.weight);
    PrefetchTensorMap(&params.input);
    PrefetchTensorMap(&params.output);
    barriers.ring.Init(8 * kCluster);  // eight consumer warps in each CTA
    for (int group = 0; group < 2; ++group) barriers.store[group].Init();
  }
  if constexpr (kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }

  if (warpgroup == 0) {
    ReleaseRegisters<40>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
      Produce<kTransposed, Shape, kCluster>(params, ring, barriers.ring, rank, tile_begin,
                                            tile_end);
    } else if (threadIdx.x % 32 == 0 && warp <= 2) {
      const int group = warp - 1;
      if constexpr (kFinish == SpmmFinish::kSwiGlu) {
        ShipPairs<Shape>(params, buffers(group), barriers.store[group], rank, group, tile_begin,
                         tile_end);
      } else {
        Ship<Shape, kFinish>(params, buffers(group), barriers.store[group], rank, group, tile_begin,
                             tile_end);
      }
    }
    __syncwarp();
  } else {
    ClaimRegisters<232>();
    const int group = warpgroup - 1;
    Consume<kTransposed, Shape, kCluster, kFinish>(params, ring, buffers(group), barriers, rank,
                                                   group, tile_begin, tile_end);
  }
  // A CTA must not leave while another may still signal its barriers.
  if constexpr (kCluster > 1) ClusterSync();
}

template <bool kTransposed, int kFeatures, int kCluster, SpmmFinish kFinish,
          SpmmForm kForm = FormOf(kFinish)>
void LaunchKernel(const SpmmParams& params, int workers, cudaStream_t stream) {
  constexpr int kSharedBytes = SpmmShape<kFeatures, kForm>::kSharedBytes;
  const auto kernel = SpmmBsrKernel<kTransposed, kFeatures, kCluster, kFinish, kForm>;
  static const bool configured = [&] {
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  cudaLaunchConfig_t launch = {};
  launch.gridDim = workers * kCluster;
  launch.blockDim = kSpmmThreads;
  launch.dynamicSmemBytes = kSharedBytes;
  launch.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kCluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&launch, kernel, params));
}

// The kernel for this tile width and cluster.
template <bool kTransposed, SpmmFinish kFinish>
void LaunchSpmmKernel(int features, int cluster, const SpmmParams& params, int workers,
                      cudaStream_t stream) {
  CHECK(cluster == 1 || cluster == 2) << "cluster of " << cluster;
  if (features == 128) {
    cluster == 1 ? LaunchKernel<kTransposed, 128, 1, kFinish>(params, workers, stream)
                 : LaunchKernel<kTransposed, 128, 2, kFinish>(params, workers, stream);
  } else {
    cluster == 1 ? LaunchKernel<kTransposed, 64, 1, kFinish>(params, workers, stream)
                 : LaunchKernel<kTransposed, 64, 2, kFinish>(params, workers, stream);
  }
}

// The same with the deeper ring, 128 features only.
template <bool kTransposed, SpmmFinish kFinish>
void LaunchSpmmDeepRing(int cluster, const SpmmParams& params, int workers, cudaStream_t stream) {
  CHECK(cluster == 1 || cluster == 2) << "cluster of " << cluster;
  cluster == 1
      ? LaunchKernel<kTransposed, 128, 1, kFinish, SpmmForm::kRing>(params, workers, stream)
      : LaunchKernel<kTransposed, 128, 2, kFinish, SpmmForm::kRing>(params, workers, stream);
}

}  // namespace filigree::sm90
