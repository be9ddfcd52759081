// LoadOnlyKernel: the forward product's copies without its products.
// Grid: one CTA per multiprocessor, persistent, in clusters of kCluster that share the weight slices by
//   multicast, as SpmmBsrKernel's. Block: 64 threads: one issues the copies, one releases the slots.
// Shared memory: a ring of the product's stages. Bytes landed a step: (128 + 256) * 128.
#include "kernels/cuda/l2_bandwidth_sm90.h"

#include <algorithm>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace filigree {
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

template <int kCluster>
__device__ __forceinline__ void IssueCopies(const Params& params, uint8_t* ring,
                                            RingBarriers<kStages>& barriers, int rank, int begin,
                                            int end) {
  const uint64_t policy = PolicyEvictNormal();
  constexpr int kLines = 128 / kCluster;
  const int line = rank * kLines;
  RingPosition<kStages> position;
  position.parity = 1;
  for (int i = begin; i < end; ++i) {
    const SpmmTile tile = params.tiles[i];
    if (tile.step_count == 0) continue;
    SpmmStep step = params.steps[tile.step_begin];
    for (int s = 0; s < tile.step_count; ++s) {
      // One ahead: under load an index takes as long as a tile.
      const SpmmStep next = params.steps[tile.step_begin + min(s + 1, tile.step_count - 1)];
      uint64_t* full = &barriers.full[position.slot];
      uint8_t* stage = ring + position.slot * kStageBytes;
      BarrierWait(&barriers.empty[position.slot], position.parity);
      BarrierExpectBytes(full, kStageBytes);
      TmaLoad3D(stage + kWeightBytes, &params.input, full, policy, 0,
                tile.token_begin + rank * 256, step.input_chunk);
      if constexpr (kCluster == 1) {
        TmaLoad3D(stage, &params.weight, full, policy, 0, step.weight_row, step.weight_chunk);
      } else {
        TmaLoadMulticast3D(stage + line * 128, &params.weight, full, (1 << kCluster) - 1, policy, 0,
                           step.weight_row + line, step.weight_chunk);
      }
      step = next;
      position.Advance();
    }
  }
}

template <int kCluster>
__device__ __forceinline__ void ReleaseSlots(const Params& params, RingBarriers<kStages>& barriers,
                                             int begin, int end) {
  RingPosition<kStages> position;
  for (int i = begin; i < end; ++i) {
    for (int s = 0; s < params.tiles[i].step_count; ++s) {
      BarrierWait(&barriers.full[position.slot], position.parity);
      for (int cta = 0; cta < kCluster; ++cta) {
        BarrierArriveCluster(&barriers.empty[position.slot], cta);
      }
      position.Advance();
    }
  }
}

template <int kCluster>
__global__ void __launch_bounds__(64, 1) LoadOnlyKernel(const __grid_constant__ Params params) {
  extern __shared__ uint8_t shared[];
  uint8_t* ring = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
  auto& barriers = *reinterpret_cast<RingBarriers<kStages>*>(ring + kStages * kStageBytes);
  const int rank = static_cast<int>(ClusterCtaRank());
  const int begin = params.worker_begin[blockIdx.x / kCluster];
  const int end = params.worker_begin[blockIdx.x / kCluster + 1];
  if (threadIdx.x == 0) barriers.Init(kCluster);
  ClusterSync();
  if (threadIdx.x == 0) IssueCopies<kCluster>(params, ring, barriers, rank, begin, end);
  if (threadIdx.x == 32) ReleaseSlots<kCluster>(params, barriers, begin, end);
  __syncthreads();
  ClusterSync();
}

// Device memory of `count` elements, zero.
template <typename T>
class Array {
 public:
  explicit Array(size_t count) {
    CUDA_CHECK(cudaMalloc(&data_, count * sizeof(T)));
    CUDA_CHECK(cudaMemset(data_, 0, count * sizeof(T)));
  }
  explicit Array(const std::vector<T>& host) : Array(host.size()) {
    CUDA_CHECK(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

// Milliseconds, the best of ten launches.
float Time(const void* kernel, const cudaLaunchConfig_t& launch, Params params) {
  cudaEvent_t events[2];
  for (auto& event : events) CUDA_CHECK(cudaEventCreate(&event));
  void* arguments[] = {&params};
  float best = 1e30f;
  for (int i = 0; i < 10; ++i) {
    CUDA_CHECK(cudaEventRecord(events[0], launch.stream));
    CUDA_CHECK(cudaLaunchKernelExC(&launch, kernel, arguments));
    CUDA_CHECK(cudaEventRecord(events[1], launch.stream));
    CUDA_CHECK(cudaEventSynchronize(events[1]));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events[0], events[1]));
    best = std::min(best, milliseconds);
  }
  for (auto& event : events) CUDA_CHECK(cudaEventDestroy(event));
  return best;
}

// A quarter of a 32 x 32 grid of blocks, at random.
struct Pattern {
  std::vector<int> row_begin = {0}, col;

  Pattern() {
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        if (RandomBelow(0, RngStream("l2 bandwidth"), i * kSide + j, 4) == 0) col.push_back(j);
      }
      row_begin.push_back(static_cast<int>(col.size()));
    }
  }
  BsrPattern view() const {
    return {.block_row_count = kSide, .block_col_count = kSide, .row_begin = row_begin, .col = col};
  }
  static constexpr int kSide = 32;
};

template <int kCluster>
double Measure(int multiprocessors) {
  constexpr int64_t kTokens = 16384, kWidth = 128 * Pattern::kSide;
  const Pattern pattern;
  const int workers = multiprocessors / kCluster;
  const SpmmSchedule schedule = BuildSpmmSchedule(
      pattern.view(), false, kTokens,
      {.workers = workers, .tile_tokens = 256 * kCluster, .token_group = 2});
  const auto rows = static_cast<int64_t>(pattern.col.size()) * 128;
  const Array<uint16_t> x(kTokens * kWidth), w(rows * 128);
  const Array<SpmmStep> steps(schedule.steps);
  const Array<SpmmTile> tiles(schedule.tiles);
  const Array<int32_t> begin(schedule.worker_begin);
  const Params params{EncodeChunkMap(w.get(), rows, 128, 128, 128 / kCluster),
                      EncodeChunkMap(x.get(), kTokens, kWidth, kWidth, 256), steps.get(),
                      tiles.get(), begin.get()};
  const auto kernel = reinterpret_cast<const void*>(&LoadOnlyKernel<kCluster>);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t launch = {};
  launch.gridDim = workers * kCluster;
  launch.blockDim = 64;
  launch.dynamicSmemBytes = kSharedBytes;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  double stages = 0;
  for (const SpmmTile& tile : schedule.tiles) stages += double{1} * tile.step_count * kCluster;
  return stages * kStageBytes / (Time(kernel, launch, params) * 1e-3);
}

}  // namespace

double MeasureL2ToSharedBandwidth() {
  int device = 0, major = 0, multiprocessors = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return major == 9 ? std::max(Measure<1>(multiprocessors), Measure<2>(multiprocessors)) : 0;
}

}  // namespace filigree
