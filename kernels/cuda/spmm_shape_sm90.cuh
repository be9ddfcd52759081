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

// Whether a finish reads an operand of the output's shape.
__host__ __device__ constexpr bool HasOperand(SpmmFinish finish) {
  return finish == SpmmFinish::kResidual || finish == SpmmFinish::kGeluBackward;
}

struct SpmmParams {
  CUtensorMap weight;  // [chunks of 64 block columns][stored rows][64]
  CUtensorMap input;   // [chunks][tokens][64]
  CUtensorMap factors; // as `weight`, of the factors' operand; `weight` itself where there is none
  CUtensorMap inner;   // as `input`, of what is between the factors; `input` itself
  CUtensorMap output;  // [tokens][features]
  CUtensorMap operand_map;  // the operand as [chunks][tokens][64], to bring it into the L2
  CUtensorMap pre_activation;   // [tokens][features], kGelu only
  const __nv_bfloat16* bias;    // [features] or nullptr
  const __nv_bfloat16* operand; // [tokens, features]: the residual or gelu's input
  int64_t operand_stride;
  float* sums;  // [ceil(tokens / 256), features], kGeluBackward only, or nullptr
  int32_t tokens;
  int32_t features;  // of the output
  const SpmmStep* steps;
  const SpmmTile* tiles;
  const int32_t* worker_begin;
};

}  // namespace filigree::sm90
