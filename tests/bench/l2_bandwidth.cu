#include "tests/bench/l2_bandwidth.h"

#include <algorithm>
#include <cstdio>

#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/tensor_map.h"
#include "tests/bench/block_sparse_problem.h"

namespace filigree::bench {
namespace {

using namespace sm90;  // NOLINT: device primitives, file-local

constexpr int kStages = 4;
constexpr int kWeightBytes = 128 * 128;
constexpr int kInputBytes = 256 * 128;
constexpr int kStageBytes = kWeightBytes + kInputBytes;
constexpr int kSharedBytes = kStages * kStageBytes + 1024 + 256;

struct Params {
  CUtensorMap weight, input;
  const SpmmStep* steps;
  const SpmmTile* tiles;
  const int32_t* worker_begin;
};

// Grid: one CTA per multiprocessor; block: 64 threads: one issues, one releases. Shared memory: a ring
// of the forward product's stages. kWeightShare: 1 / the part of the weight slice that is loaded.
template <int kCluster, bool kWeights>
__global__ void __launch_bounds__(64, 1) LoadOnlyKernel(const __grid_constant__ Params params) {
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers = *reinterpret_cast<RingBarriers<kStages>*>(ring + kStages * kStageBytes);
  const int rank = kCluster == 1 ? 0 : static_cast<int>(ClusterCtaRank());
  const int begin = params.worker_begin[blockIdx.x / kCluster];
  const int end = params.worker_begin[blockIdx.x / kCluster + 1];
  if (threadIdx.x == 0) barriers.Init(kCluster);
  if constexpr (kCluster > 1) ClusterSync();
  __syncthreads();
  RingPosition<kStages> position;
  if (threadIdx.x == 0) {
    const uint64_t policy = PolicyEvictNormal();
    position.parity = 1;
    for (int i = begin; i < end; ++i) {
      const SpmmTile tile = params.tiles[i];
      SpmmStep step = params.steps[tile.step_begin];
      for (int s = 0; s < tile.step_count; ++s) {
        // One ahead: under load an index takes as long as a tile.
        const SpmmStep next = params.steps[tile.step_begin + min(s + 1, tile.step_count - 1)];
        uint64_t* full = &barriers.full[position.slot];
        uint8_t* stage = ring + position.slot * kStageBytes;
        BarrierWait(&barriers.empty[position.slot], position.parity);
        BarrierExpectBytes(full, kInputBytes + (kWeights ? kWeightBytes : 0));
        TmaLoad3D(stage + kWeightBytes, &params.input, full, policy, 0,
                  tile.token_begin + rank * 256, step.input_chunk);
        constexpr int kLines = 128 / kCluster;
        const int line = rank * kLines;
        if constexpr (kWeights && kCluster == 1) {
          TmaLoad3D(stage, &params.weight, full, policy, 0, step.weight_row, step.weight_chunk);
        } else if constexpr (kWeights) {
          TmaLoadMulticast3D(stage + line * 128, &params.weight, full, (1 << kCluster) - 1, policy,
                             0, step.weight_row + line, step.weight_chunk);
        }
        step = next;
        position.Advance();
      }
    }
  } else if (threadIdx.x == 32) {
    for (int i = begin; i < end; ++i) {
      const int steps = params.tiles[i].step_count;
      for (int s = 0; s < steps; ++s) {
        BarrierWait(&barriers.full[position.slot], position.parity);
        if constexpr (kCluster == 1) {
          BarrierArrive(&barriers.empty[position.slot]);
        } else {
          for (int cta = 0; cta < kCluster; ++cta) {
            BarrierArriveCluster(&barriers.empty[position.slot], cta);
          }
        }
        position.Advance();
      }
    }
  }
  __syncthreads();
  if constexpr (kCluster > 1) ClusterSync();
}

template <int kCluster, bool kWeights>
void Measure(int token_group) {
  constexpr int64_t kTokens = 16384, kWidth = 4096;
  const HostPattern pattern =
      MakePattern(Layout::kRandom, {128, 128}, kWidth, kWidth, 0.25, 5);
  const int workers = MultiprocessorCount() / kCluster;
  const SpmmSchedule schedule =
      BuildSpmmSchedule(pattern.view(), false, kTokens,
                        {.workers = workers, .tile_tokens = 256 * kCluster,
                         .token_group = std::max(1, token_group / kCluster)});
  DeviceArray<__nv_bfloat16> x(kTokens * kWidth), w(pattern.col.size() * 128 * 128);
  FillRandom(x.get(), kTokens * kWidth, Fill::kNormal, 1, 1);
  FillRandom(w.get(), static_cast<int64_t>(w.size()), Fill::kNormal, 1, 2);
  const DeviceArray<SpmmStep> steps(schedule.steps);
  const DeviceArray<SpmmTile> tiles(schedule.tiles);
  const DeviceArray<int32_t> begin(schedule.worker_begin);
  const Params params{EncodeChunkMap(w.get(), static_cast<int64_t>(pattern.col.size()) * 128, 128,
                                     128, 128 / kCluster),
                      EncodeChunkMap(x.get(), kTokens, kWidth, kWidth, 256), steps.get(),
                      tiles.get(), begin.get()};
  const auto kernel = LoadOnlyKernel<kCluster, kWeights>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchConfig_t launch = {};
  launch.gridDim = workers * kCluster;
  launch.blockDim = 64;
  launch.dynamicSmemBytes = kSharedBytes;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kCluster, 1, 1};
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  int clusters = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch));
  cudaEvent_t events[2];
  for (auto& event : events) CUDA_CHECK(cudaEventCreate(&event));
  constexpr int kRuns = 10;
  float best = 1e9f;
  for (int i = 0; i < kRuns; ++i) {
    CUDA_CHECK(cudaEventRecord(events[0]));
    CUDA_CHECK(cudaLaunchKernelEx(&launch, kernel, params));
    CUDA_CHECK(cudaEventRecord(events[1]));
    CUDA_CHECK(cudaDeviceSynchronize());
    float ms;
    CUDA_CHECK(cudaEventElapsedTime(&ms, events[0], events[1]));
    best = std::min(best, ms);
  }
  double stages = 0;
  for (const SpmmTile& tile : schedule.tiles) stages += double{1} * tile.step_count * kCluster;
  const double read = stages * (kInputBytes + (kWeights ? kWeightBytes / kCluster : 0));
  const double landed = stages * (kInputBytes + (kWeights ? kWeightBytes : 0));
  std::printf("load-only cluster=%d weights=%d group=%2d: %7.1f us  read %5.2f TB/s  landed %5.2f TB/s, %d "
              "clusters fit\n",
              kCluster, kWeights, token_group, best * 1e3, read / best / 1e9, landed / best / 1e9, clusters);
  for (auto& event : events) CUDA_CHECK(cudaEventDestroy(event));
}

}  // namespace

void PrintL2Bandwidth() {
  for (const int group : {2, 8, 32}) {
    Measure<1, false>(group);
    Measure<1, true>(group);
    Measure<2, true>(group);
    Measure<4, true>(group);
  }
}

}  // namespace filigree::bench
