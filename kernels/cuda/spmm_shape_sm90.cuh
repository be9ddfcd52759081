// Sizes and parameters of SpmmBsrKernel (spmm_kernel_sm90.cuh).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/sm90_pipeline.cuh"
#include "kernels/cuda/spmm_bsr_sm90.h"

namespace filigree::sm90 {

constexpr int kSpmmThreads = 384;
constexpr int kWarpgroup = 128;
constexpr int kLineBytes = 128;     // one swizzled row of 64 bf16
constexpr int kCodeLineBytes = 64;  // one swizzled row of 64 codes

// Whether a finish reads an operand of the output's shape.
__host__ __device__ constexpr bool HasOperand(SpmmFinish finish) {
  return finish == SpmmFinish::kResidual || finish == SpmmFinish::kGeluBackward ||
         finish == SpmmFinish::kSwiGluBackward;
}

// Whether it reads or writes codes of GELU's derivative.
__host__ __device__ constexpr bool HasCodes(SpmmFinish finish) {
  return finish == SpmmFinish::kGeluCode || finish == SpmmFinish::kGeluCodeBackward;
}

__host__ __device__ constexpr bool IsGeluBackward(SpmmFinish finish) {
  return finish == SpmmFinish::kGeluBackward || finish == SpmmFinish::kGeluCodeBackward;
}

// How often a chunk is stored: with GELU the sum, then its activation; of SwiGLU's gradients up's,
// then gate's.
__host__ __device__ constexpr int StoresPerChunk(SpmmFinish finish) {
  return finish == SpmmFinish::kGelu || finish == SpmmFinish::kSwiGluBackward ? 2 : 1;
}

// What shared memory has beside three stages of the ring (two, for 64 features), for each consumer
// warpgroup: a buffer for every chunk of its results; one for half of them, and the ring a stage more;
// or one for half of them, and a tile of codes.
enum class SpmmForm { kBuffers, kRing, kCodes };

__host__ __device__ constexpr SpmmForm FormOf(SpmmFinish finish) {
  return HasCodes(finish) ? SpmmForm::kCodes : SpmmForm::kBuffers;
}

// The buffers of a consumer warpgroup's results. `ready`: free, and holding the operand's chunk
// where there is one; `written`: the chunk's results are in it. `codes`: the tile of codes is free
// (kGeluCode) or filled (kGeluCodeBackward).
template <int kBuffers>
struct StoreBarriers {
  uint64_t ready[kBuffers];
  uint64_t written[kBuffers];
  uint64_t codes;

  __device__ __forceinline__ void Init() {
    for (int i = 0; i < kBuffers; ++i) {
      BarrierInit(&ready[i], 1);
      BarrierInit(&written[i], kWarpgroup / 32);
    }
    BarrierInit(&codes, 1);
    FenceBarrierInit();
  }
};

// Sizes that follow from the tile and the form.
template <int kTileFeatures, SpmmForm kForm>
struct SpmmShape {
  static constexpr int kFeatures = kTileFeatures;
  static constexpr int kTokens = kFeatures == 128 ? 256 : 512;
  static constexpr int kStages = (kFeatures == 128 ? 3 : 2) + (kForm == SpmmForm::kRing ? 1 : 0);
  static constexpr int kWeightBytes = kFeatures * kLineBytes;
  static constexpr int kInputBytes = kTokens * kLineBytes;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  // A consumer warpgroup's 64 features x 256 tokens leave in chunks.
  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * kLineBytes;
  static constexpr int kChunks = 256 / kStoreTokens;
  static constexpr int kBuffers = kForm == SpmmForm::kBuffers ? kChunks : kChunks / 2;
  static constexpr int kRingBytes = kStages * kStageBytes;
  // A warpgroup's: its buffers, then its codes.
  static constexpr int kCodeOffset = kBuffers * kStoreBytes;
  static constexpr int kCodeBytes = kForm == SpmmForm::kCodes ? 256 * kCodeLineBytes : 0;
  static constexpr int kGroupBytes = kCodeOffset + kCodeBytes;
  static constexpr int kBarrierOffset = kRingBytes + 2 * kGroupBytes;
  static constexpr int kBarrierBytes =
      static_cast<int>(sizeof(RingBarriers<kStages>) + 2 * sizeof(StoreBarriers<kBuffers>));
  // 1024 more: the swizzle needs 1024-byte alignment, which the launch does not promise.
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <typename Shape>
struct SpmmBarriers {
  RingBarriers<Shape::kStages> ring;
  StoreBarriers<Shape::kBuffers> store[2];  // by consumer warpgroup
};

struct SpmmParams {
  CUtensorMap weight;   // [chunks of 64 block columns][stored rows][64]
  CUtensorMap input;    // [chunks][tokens][64]
  CUtensorMap factors;  // as `weight`, of the factors' operand; `weight` itself where there is none
  CUtensorMap inner;    // as `input`, of what is between the factors; `input` itself
  CUtensorMap output;   // [tokens][features]
  CUtensorMap operand;  // as `input`, where the finish has one: the residual, gelu's input, gate
  CUtensorMap up;       // as `operand`, kSwiGluBackward only
  CUtensorMap beside;   // as `output`, where a chunk is stored twice: what goes first; or kSwiGlu's
  CUtensorMap codes;    // [tokens][features] of bytes, where the finish has codes
  const __nv_bfloat16* bias;  // [features] or nullptr
  float* sums;                // [ceil(tokens / 256), features], IsGeluBackward only, or nullptr
  int32_t tokens;
  int32_t features;  // of the output
  const SpmmStep* steps;
  const SpmmTile* tiles;
  const int32_t* worker_begin;
};

__device__ __forceinline__ SpmmTile LoadTile(const SpmmTile* tiles, int index) {
  const int4 raw = __ldg(reinterpret_cast<const int4*>(tiles) + index);
  return {raw.x, raw.y, raw.z, raw.w};
}

// The first feature and token of a consumer warpgroup's part of a tile.
struct SpmmPart {
  int feature, token;
};

template <typename Shape>
__device__ __forceinline__ SpmmPart PartOf(const SpmmTile& tile, uint32_t rank, int group) {
  const int token = tile.token_begin + static_cast<int>(rank) * Shape::kTokens;
  return Shape::kFeatures == 128 ? SpmmPart{tile.feature_begin + group * 64, token}
                                 : SpmmPart{tile.feature_begin, token + group * 256};
}

}  // namespace filigree::sm90
