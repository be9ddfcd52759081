// The way of SpmmBsrKernel's results out, and of an operand of their shape in: one thread for each
// consumer warpgroup, beside the products.
//
// A buffer goes round: Prime loads the operand's chunk into it, or just declares it ready; the
// warpgroup puts its results over it (spmm_epilogue_sm90.cuh); it is stored, and once the copy
// engine has read it, primed for the pass kBuffers later. So a tile's operand arrives, and the
// results of the one before leave, while it is being multiplied. (Loading the operand into
// registers did worse than it looked: the fence before a store waits for every load in flight.) The
// copy engine drops tokens beyond the end, and reads zeros there. The codes of a tile have one place,
// which goes round with the tiles.
#pragma once

#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/spmm_shape_sm90.cuh"

namespace filigree::sm90 {

// `pass` is of a tile: its chunks, each as often as it is stored.
template <typename Shape, SpmmFinish kFinish>
__device__ __forceinline__ void Prime(const SpmmParams& params, uint8_t* buffers,
                                      StoreBarriers<Shape::kBuffers>& barriers,
                                      const SpmmPart& part, int pass, uint64_t policy) {
  const int buffer = pass % Shape::kBuffers;
  uint64_t* ready = &barriers.ready[buffer];
  if constexpr (!HasOperand(kFinish)) {
    BarrierArrive(ready);
  } else {
    constexpr int kStores = StoresPerChunk(kFinish);
    const bool first_of_two = kStores == 2 && pass % 2 == 0;
    BarrierExpectBytes(ready, Shape::kStoreBytes);
    TmaLoad3D(buffers + buffer * Shape::kStoreBytes, first_of_two ? &params.up : &params.operand,
              ready, policy, 0, part.token + pass / kStores * Shape::kStoreTokens,
              part.feature / 64);
  }
}

// The codes' place, which the warpgroup has done with, for this part: filled, or just free.
template <typename Shape, SpmmFinish kFinish>
__device__ __forceinline__ void PrimeCodes(const SpmmParams& params, uint8_t* buffers,
                                           uint64_t* ready, const SpmmPart& part,
                                           uint64_t policy) {
  if constexpr (kFinish == SpmmFinish::kGeluCode) {
    BarrierArrive(ready);
  } else if constexpr (kFinish == SpmmFinish::kGeluCodeBackward) {
    BarrierExpectBytes(ready, Shape::kCodeBytes);
    TmaLoad2D(buffers + Shape::kCodeOffset, &params.codes, ready, policy, part.feature, part.token);
  }
}

template <typename Shape, SpmmFinish kFinish>
__device__ __forceinline__ void Ship(const SpmmParams& params, uint8_t* buffers,
                                     StoreBarriers<Shape::kBuffers>& barriers, uint32_t rank,
                                     int group, int tile_begin, int tile_end) {
  constexpr int kBuffers = Shape::kBuffers, kStores = StoresPerChunk(kFinish);
  constexpr int kPasses = Shape::kChunks * kStores, kRounds = kPasses / kBuffers;
  static_assert(kPasses == kRounds * kBuffers);
  if (tile_begin == tile_end) return;
  const uint64_t policy = PolicyEvictFirst();
  SpmmPart part = PartOf<Shape>(LoadTile(params.tiles, tile_begin), rank, group), next = part;
  const auto prime = [&](const SpmmPart& of, int pass) {
    Prime<Shape, kFinish>(params, buffers, barriers, of, pass, policy);
  };
  const auto prime_codes = [&](const SpmmPart& of) {
    PrimeCodes<Shape, kFinish>(params, buffers, &barriers.codes, of, policy);
  };
  prime_codes(part);
  for (int pass = 0; pass < kBuffers; ++pass) prime(part, pass);
  for (int index = tile_begin; index < tile_end; ++index) {
    const bool last = index + 1 == tile_end;
    if (!last) next = PartOf<Shape>(LoadTile(params.tiles, index + 1), rank, group);
    // Once the store of `pass` has been read.
    const auto reuse = [&](int pass) {
      if (pass + kBuffers < kPasses) {
        prime(part, pass + kBuffers);
      } else if (!last) {
        prime(next, pass + kBuffers - kPasses);
      }
    };
    for (int pass = 0; pass < kPasses; ++pass) {
      const int buffer = pass % kBuffers;
      const bool first_of_two = kStores == 2 && pass % 2 == 0;
      const int round = (index - tile_begin) * kRounds + pass / kBuffers;
      BarrierWait(&barriers.written[buffer], round % 2);
      TmaStore2D(first_of_two ? &params.beside : &params.output,
                 buffers + buffer * Shape::kStoreBytes, policy, part.feature,
                 part.token + pass / kStores * Shape::kStoreTokens);
      TmaStoreCommit();
      if (pass == 0) continue;
      TmaStoreWaitRead<1>();
      reuse(pass - 1);
    }
    if constexpr (kFinish == SpmmFinish::kGeluCode) {
      TmaStore2D(&params.codes, buffers + Shape::kCodeOffset, policy, part.feature, part.token);
      TmaStoreCommit();
    }
    TmaStoreWaitRead<0>();
    reuse(kPasses - 1);
    if (!last) prime_codes(next);
    part = next;
  }
}

}  // namespace filigree::sm90
