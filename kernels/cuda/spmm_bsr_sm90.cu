// SpmmBsrKernel: Y = X W^T (kTransposed = 0) or dX = dY W (kTransposed = 1), W in stored blocks.
//
// It computes the transposed tile D^T = A B^T with A a slice of a weight block (M = output features)
// and B rows of the input (N = tokens): sparsity then lies on M, where a warpgroup is 64 wide, and
// the instruction is m64n256k16, the one that reads the least shared memory per product.
//   kFeatures = 128: the two consumer warpgroups take 64 features each and share 256 tokens.
//   kFeatures =  64: they share the 64 features and take 256 tokens each.
// Grid: one CTA per multiprocessor, persistent, in clusters of kCluster along the tokens; all CTAs of
//   a cluster walk the same block row, load kFeatures / kCluster rows of each weight slice and
//   multicast them. Block: 384 threads: warpgroup 0 issues the copies, 1 and 2 multiply.
// Shared memory: a ring of stages {weight kFeatures x 128 B, input tokens x 128 B}, one reduction
//   step of 64 each; then two store buffers per consumer warpgroup; then barriers. The warpgroups
//   share stages but never wait for each other, so one's epilogue hides behind the other's products.
// Bytes from L2 per step: (kFeatures / kCluster + tokens) * 128. FLOPs per step: 2 * 64 * kFeatures *
//   tokens. Device memory: X and Y once each, W once per token group.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"
#include "kernels/cuda/spmm_bsr_sm90.h"
#include "kernels/cuda/tensor_map.h"

namespace filigree {
namespace {

using namespace sm90;  // NOLINT: device primitives, file-local

constexpr int kThreads = 384;
constexpr int kWarpgroup = 128;
constexpr int kLineBytes = 128;  // one swizzled row of 64 bf16

// Sizes that follow from the tile.
template <int kFeatures>
struct SpmmShape {
  static constexpr int kTokens = kFeatures == 128 ? 256 : 512;
  static constexpr int kStages = kFeatures == 128 ? 4 : 3;
  static constexpr int kWeightBytes = kFeatures * kLineBytes;
  static constexpr int kInputBytes = kTokens * kLineBytes;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kStoreTokens = kFeatures == 128 ? 64 : 16;
  static constexpr int kStoreBytes = kStoreTokens * kLineBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kBarrierOffset = kRingBytes + 2 * 2 * kStoreBytes;
  // 1024 more: the swizzle needs 1024-byte alignment, which the launch does not promise.
  static constexpr int kSharedBytes =
      kBarrierOffset + static_cast<int>(sizeof(RingBarriers<kStages>)) + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct SpmmParams {
  CUtensorMap weight;  // [chunks of 64 block columns][stored rows][64]
  CUtensorMap input;   // [chunks][tokens][64]
  CUtensorMap output;  // [tokens][features]
  const SpmmStep* steps;
  const SpmmTile* tiles;
  const int32_t* worker_begin;
};

__device__ __forceinline__ SpmmTile LoadTile(const SpmmTile* tiles, int index) {
  const int4 raw = __ldg(reinterpret_cast<const int4*>(tiles) + index);
  return {raw.x, raw.y, raw.z, raw.w};
}

__device__ __forceinline__ SpmmStep LoadStep(const SpmmStep* steps, int index) {
  const int2 raw = __ldg(reinterpret_cast<const int2*>(steps) + index);
  return {raw.x, static_cast<int16_t>(raw.y), static_cast<int16_t>(raw.y >> 16)};
}

// This CTA's share of a weight slice, kFeatures / kCluster lines, sent to the whole cluster. Line q
// of the slice is stored row q (forward), or row q % 64 of the block's chunk q / 64 (transposed).
template <bool kTransposed, int kFeatures, int kCluster>
__device__ __forceinline__ void LoadWeight(const SpmmParams& params, uint8_t* destination,
                                           uint64_t* barrier, uint64_t policy, uint32_t rank,
                                           const SpmmStep& step) {
  constexpr int kLines = kFeatures / kCluster;
  constexpr int kBoxLines = kLines < 64 ? kLines : 64;
#pragma unroll
  for (int i = 0; i < kLines; i += kBoxLines) {
    const int line = static_cast<int>(rank) * kLines + i;
    const int row = step.weight_row + (kTransposed ? line % 64 : line);
    const int chunk = kTransposed ? line / 64 : step.weight_chunk;
    uint8_t* target = destination + line * kLineBytes;
    if constexpr (kCluster == 1) {
      TmaLoad3D(target, &params.weight, barrier, policy, 0, row, chunk);
    } else {
      constexpr uint16_t kEveryCta = (1 << kCluster) - 1;
      TmaLoadMulticast3D(target, &params.weight, barrier, kEveryCta, policy, 0, row, chunk);
    }
  }
}

// One thread issues every copy of the CTA.
template <bool kTransposed, int kFeatures, int kCluster>
__device__ __forceinline__ void Produce(const SpmmParams& params, uint8_t* ring,
                                        RingBarriers<SpmmShape<kFeatures>::kStages>& barriers,
                                        uint32_t rank, int tile_begin, int tile_end) {
  using Shape = SpmmShape<kFeatures>;
  const uint64_t weight_policy = PolicyEvictLast();
  const uint64_t input_policy = PolicyEvictLast();
  RingPosition<Shape::kStages> position;
  position.parity = 1;
  for (int index = tile_begin; index < tile_end; ++index) {
    const SpmmTile tile = LoadTile(params.tiles, index);
    const int token = tile.token_begin + static_cast<int>(rank) * Shape::kTokens;
    if (tile.step_count == 0) continue;
    SpmmStep step = LoadStep(params.steps, tile.step_begin);
    for (int i = 0; i < tile.step_count; ++i) {
      const SpmmStep next = LoadStep(params.steps, tile.step_begin + min(i + 1, tile.step_count - 1));
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* weight = ring + position.slot * Shape::kStageBytes;
      uint8_t* input = weight + Shape::kWeightBytes;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, Shape::kStageBytes);
      LoadWeight<kTransposed, kFeatures, kCluster>(params, weight, full, weight_policy, rank, step);
#pragma unroll
      for (int t = 0; t < Shape::kTokens; t += 256) {
        TmaLoad3D(input + t * kLineBytes, &params.input, full, input_policy, 0, token + t,
                  step.input_chunk);
      }
      step = next;
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

// Sums one tile into the accumulators. One group of products stays in flight while the next slot is
// awaited; a slot is released when the group that read it has ended, one step late.
template <bool kTransposed, int kFeatures, int kCluster>
__device__ __forceinline__ void Accumulate(float (&acc)[128], int step_count, uint32_t ring,
                                           RingBarriers<SpmmShape<kFeatures>::kStages>& barriers,
                                           RingPosition<SpmmShape<kFeatures>::kStages>& position,
                                           int group) {
  using Shape = SpmmShape<kFeatures>;
  constexpr int kAdvance = kTransposed ? kAdvanceTransposed : kAdvanceKMajor;
  // Which half of which operand is this warpgroup's.
  const uint32_t weight_offset = kFeatures == 128 ? group * 64 * kLineBytes : 0;
  const uint32_t input_offset =
      Shape::kWeightBytes + (kFeatures == 128 ? 0 : group * 256 * kLineBytes);
  int previous = 0;
  for (int step = 0; step < step_count; ++step) {
    BarrierWait(&barriers.full[position.slot], position.parity);
    const uint32_t stage = ring + position.slot * Shape::kStageBytes;
    const uint64_t a = OperandDescriptor(stage + weight_offset, 0);
    const uint64_t b = OperandDescriptor(stage + input_offset, 0);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<256, kTransposed, 0>(acc, a + k * (kAdvance >> 4), b + k * (kAdvanceKMajor >> 4),
                                 step > 0 || k > 0);
    }
    WgmmaCommit();
    WgmmaWait<1>();
    if (step > 0) Release<kCluster>(&barriers.empty[previous]);
    previous = position.slot;
    position.Advance();
  }
  WgmmaWait<0>();
  if (step_count > 0) Release<kCluster>(&barriers.empty[previous]);
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Writes 64 features x 256 tokens of accumulators as rows of tokens: stmatrix transposes 8x8 tiles on
// the way to shared memory, TMA stores them and drops tokens beyond the end. Bias, activation and
// residual belong here, on `acc` before PackBf16: a thread holds features feature_begin + 16 * warp +
// lane / 4 (+ 8) and tokens token_begin + 8j + 2 * (lane % 4) (+ 1).
template <int kFeatures>
__device__ __forceinline__ void StoreTile(const SpmmParams& params, const float (&acc)[128],
                                          uint8_t* buffers, uint64_t policy, int group,
                                          int feature_begin, int token_begin) {
  using Shape = SpmmShape<kFeatures>;
  const int thread = threadIdx.x % kWarpgroup;
  const int warp = thread / 32;
  const int lane = thread % 32;
  // Lane l addresses row l % 8 of the 8x8 tile l / 8: tiles are (features 0-7 | 8-15) x two token
  // groups; 16-byte columns are swizzled by the row as the copy engine expects.
  const int store_row = (lane / 16) * 8 + lane % 8;
  const int store_column = (2 * warp + (lane / 8) % 2) ^ (lane % 8);
#pragma unroll
  for (int chunk = 0; chunk < 256 / Shape::kStoreTokens; ++chunk) {
    uint8_t* buffer = buffers + (chunk % 2) * Shape::kStoreBytes;
    if (thread == 0) TmaStoreWaitRead<1>();
    NamedBarrierSync(1 + group, kWarpgroup);
    const uint32_t address = SharedAddress(buffer) + store_row * kLineBytes + store_column * 16;
#pragma unroll
    for (int t = 0; t < Shape::kStoreTokens; t += 16) {
      const int j = 4 * ((chunk * Shape::kStoreTokens + t) / 8);
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       address + t * kLineBytes),
                   "r"(PackBf16(acc[j], acc[j + 1])), "r"(PackBf16(acc[j + 2], acc[j + 3])),
                   "r"(PackBf16(acc[j + 4], acc[j + 5])), "r"(PackBf16(acc[j + 6], acc[j + 7]))
                   : "memory");
    }
    FenceProxyAsync();
    NamedBarrierSync(1 + group, kWarpgroup);
    if (thread == 0) {
      TmaStore2D(&params.output, buffer, policy, feature_begin,
                 token_begin + chunk * Shape::kStoreTokens);
      TmaStoreCommit();
    }
  }
}

template <bool kTransposed, int kFeatures, int kCluster>
__device__ __forceinline__ void Consume(const SpmmParams& params, uint8_t* ring,
                                        RingBarriers<SpmmShape<kFeatures>::kStages>& barriers,
                                        uint32_t rank, int group, int tile_begin, int tile_end) {
  using Shape = SpmmShape<kFeatures>;
  uint8_t* buffers = ring + Shape::kRingBytes + group * 2 * Shape::kStoreBytes;
  const uint64_t policy = PolicyEvictFirst();
  RingPosition<Shape::kStages> position;
  float acc[128];
  for (int index = tile_begin; index < tile_end; ++index) {
    const SpmmTile tile = LoadTile(params.tiles, index);
    if (tile.step_count == 0) {
#pragma unroll
      for (int i = 0; i < 128; ++i) acc[i] = 0;
    }
    Accumulate<kTransposed, kFeatures, kCluster>(acc, tile.step_count, SharedAddress(ring), barriers,
                                                 position, group);
    const int token = tile.token_begin + static_cast<int>(rank) * Shape::kTokens;
    StoreTile<kFeatures>(params, acc, buffers, policy, group,
                         tile.feature_begin + (kFeatures == 128 ? group * 64 : 0),
                         token + (kFeatures == 128 ? 0 : group * 256));
  }
  if (threadIdx.x % kWarpgroup == 0) TmaStoreWaitRead<0>();
}

template <bool kTransposed, int kFeatures, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    SpmmBsrKernel(const __grid_constant__ SpmmParams params) {
  using Shape = SpmmShape<kFeatures>;
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers =
      *reinterpret_cast<RingBarriers<Shape::kStages>*>(ring + Shape::kBarrierOffset);
  const int warpgroup = threadIdx.x / kWarpgroup;
  const uint32_t rank = kCluster == 1 ? 0 : ClusterCtaRank();
  const int worker = blockIdx.x / kCluster;
  const int tile_begin = __ldg(params.worker_begin + worker);
  const int tile_end = __ldg(params.worker_begin + worker + 1);

  if (threadIdx.x == 0) {
    PrefetchTensorMap(&params.weight);
    PrefetchTensorMap(&params.input);
    PrefetchTensorMap(&params.output);
    barriers.Init(8 * kCluster);  // eight consumer warps in each CTA
  }
  if constexpr (kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }

  if (warpgroup == 0) {
    ReleaseRegisters<40>();
    if (threadIdx.x == 0) {
      Produce<kTransposed, kFeatures, kCluster>(params, ring, barriers, rank, tile_begin, tile_end);
    }
    __syncwarp();
  } else {
    ClaimRegisters<232>();
    Consume<kTransposed, kFeatures, kCluster>(params, ring, barriers, rank, warpgroup - 1,
                                              tile_begin, tile_end);
  }
  // A CTA must not leave while another may still signal its barriers.
  if constexpr (kCluster > 1) ClusterSync();
}

template <bool kTransposed, int kFeatures, int kCluster>
void LaunchKernel(const SpmmParams& params, int workers, cudaStream_t stream) {
  constexpr int kSharedBytes = SpmmShape<kFeatures>::kSharedBytes;
  const auto kernel = SpmmBsrKernel<kTransposed, kFeatures, kCluster>;
  static const bool configured = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  cudaLaunchConfig_t launch = {};
  launch.gridDim = workers * kCluster;
  launch.blockDim = kThreads;
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

template <bool kTransposed, int kFeatures>
void LaunchCluster(const SpmmParams& params, const SpmmConfig& config, cudaStream_t stream) {
  const int workers = config.tiling.workers;
  switch (config.cluster) {
    case 1: return LaunchKernel<kTransposed, kFeatures, 1>(params, workers, stream);
    case 2: return LaunchKernel<kTransposed, kFeatures, 2>(params, workers, stream);
    default: CHECK(false) << "cluster of " << config.cluster;
  }
}

}  // namespace

bool CanImplementSpmmBsrSm90(const SpmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0;
}

SpmmConfig ConfigSpmmBsrSm90(const SpmmDesc& desc, int multiprocessors) {
  SpmmConfig config;
  const int cta_tokens = desc.tile_features() == 128 ? 256 : 512;
  // Tuned on an H100 at 16,384 tokens: sharing weights in pairs gains 10 % at half the blocks, nothing
  // with 64 features or few blocks, where the lock-step costs as much.
  const double density = static_cast<double>(desc.block_count) * desc.block.rows * desc.block.cols /
                         (static_cast<double>(desc.out_features) * desc.in_features);
  config.cluster = cta_tokens == 256 && density > 0.15 && desc.tokens > cta_tokens ? 2 : 1;
  config.tiling.workers = multiprocessors / config.cluster;
  config.tiling.tile_tokens = cta_tokens * config.cluster;
  config.tiling.token_group = 2;  // larger groups let the input's panel fall out of the L2
  return config;
}

void LaunchSpmmBsrSm90(const SpmmDesc& desc, const SpmmConfig& config, const SpmmKernelArgs& args,
                       cudaStream_t stream) {
  CHECK(CanImplementSpmmBsrSm90(desc));
  const int features = desc.tile_features();
  SpmmParams params;
  params.weight = EncodeChunkMap(args.values, std::max<int64_t>(desc.block_count, 1) * desc.block.rows,
                                 desc.block.cols, desc.block.cols,
                                 std::min(64, features / config.cluster));
  params.input =
      EncodeChunkMap(args.input, desc.tokens, desc.input_width(), args.input_stride, 256);
  params.output = EncodeStoreMap(args.output, desc.tokens, desc.output_width(), args.output_stride,
                                 features == 128 ? SpmmShape<128>::kStoreTokens
                                                 : SpmmShape<64>::kStoreTokens);
  params.steps = args.steps;
  params.tiles = args.tiles;
  params.worker_begin = args.worker_begin;
  if (features == 128) {
    desc.transposed ? LaunchCluster<true, 128>(params, config, stream)
                    : LaunchCluster<false, 128>(params, config, stream);
  } else {
    desc.transposed ? LaunchCluster<true, 64>(params, config, stream)
                    : LaunchCluster<false, 64>(params, config, stream);
  }
}

}  // namespace filigree
