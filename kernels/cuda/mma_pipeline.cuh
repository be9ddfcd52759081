// What the mma.sync kernels share: the instructions, and a CTA's loop over a ring of shared-memory
// stages that cp.async fills while the warps multiply.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/mma_indices.h"

namespace filigree::mma {

inline constexpr int kThreads = 128;
inline constexpr int kStages = 3;
inline constexpr int kStepDepth = 32;  // reduction elements a stage, two instructions deep

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, the first `bytes` of them from `source` and the others zeros.
__device__ __forceinline__ void CopyChunk(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

template <bool kTranspose>
__device__ __forceinline__ void LoadMatrices(uint32_t (&out)[4], uint32_t address) {
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ void MultiplyAdd(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// One operand's tile of kExtent (along m or n) by kStepDepth in a stage.
template <int kExtent, bool kRowsAlongK>
struct OperandTile {
  static constexpr int kRows = kRowsAlongK ? kStepDepth : kExtent;
  static constexpr int kRowChunks = (kRowsAlongK ? kExtent : kStepDepth) / kChunkElements;
  static constexpr int kChunks = kRows * kRowChunks;
  static constexpr int kBytes = kChunks * kChunkBytes;

  // A lane's address in the tile at 0, for the part that begins at `extent` along m or n.
  static __device__ __forceinline__ uint32_t LaneOffset(RowChunk lane, int extent) {
    return kRowsAlongK ? TileOffset<kRowChunks>(lane.row, extent / kChunkElements + lane.chunk)
                       : TileOffset<kRowChunks>(extent + lane.row, lane.chunk);
  }
  // The i-th 16 elements (m or n) by the k-th 16 (reduction) of that part.
  static __device__ __forceinline__ void Load(uint32_t (&out)[4], uint32_t address, int i, int k) {
    LoadMatrices<kRowsAlongK>(out, MoveInTile<kRowsAlongK, kRowChunks>(address, i, k));
  }
};

// The tile of a CTA of four warps: kM x kN outputs, kWarpM x kWarpN a warp.
template <int kTileM, int kTileN, int kWarpTileM, int kWarpTileN, bool kARowsAlongK,
          bool kBRowsAlongK>
struct CtaTile {
  static constexpr int kM = kTileM, kN = kTileN, kWarpM = kWarpTileM, kWarpN = kWarpTileN;
  static constexpr int kMTiles = kWarpM / 16, kNTiles = kWarpN / 8;
  static constexpr int kWarpsAlongM = kM / kWarpM;
  static_assert(kM / kWarpM * (kN / kWarpN) * 32 == kThreads);
  using A = OperandTile<kM, kARowsAlongK>;
  using B = OperandTile<kN, kBRowsAlongK>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  using Accumulators = float[kMTiles][kNTiles][4];

  // Where the calling warp's part begins in the tile.
  static __device__ __forceinline__ int WarpM() { return threadIdx.x / 32 % kWarpsAlongM * kWarpM; }
  static __device__ __forceinline__ int WarpN() { return threadIdx.x / 32 / kWarpsAlongM * kWarpN; }

  // The calling lane's addresses in a stage at 0.
  struct LaneOffsets {
    uint32_t a = A::LaneOffset(AddressOfA(kARowsAlongK, threadIdx.x % 32), WarpM());
    uint32_t b = A::kBytes + B::LaneOffset(AddressOfB(kBRowsAlongK, threadIdx.x % 32), WarpN());
  };

  // A warp's operands of one instruction depth.
  struct Fragments {
    uint32_t a[kMTiles][4];
    uint32_t b[kNTiles / 2][4];

    __device__ __forceinline__ void Load(uint32_t stage, const LaneOffsets& lane, int k) {
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) A::Load(a[i], stage + lane.a, i, k);
#pragma unroll
      for (int j = 0; j < kNTiles / 2; ++j) B::Load(b[j], stage + lane.b, j, k);
    }

    __device__ __forceinline__ void Multiply(Accumulators& acc) const {
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
          MultiplyAdd(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  };
};

// acc = the sum over `steps` stages. `loader.Load(stage)` starts the calling thread's copies of the
// next step into a stage; it is called `steps` times. Ends with the ring free for other use.
//
// Step s reads slot s % kStages. Its second fragments are in registers before the barrier that ends
// it, so the copies issued between that barrier and the next may refill the slot.
template <class Tile, class Loader>
__device__ __forceinline__ void Accumulate(typename Tile::Accumulators& acc, uint32_t ring,
                                           int steps, Loader& loader) {
  static_assert(kStepDepth == 32);
#pragma unroll
  for (int i = 0; i < Tile::kMTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kNTiles; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) acc[i][j][r] = 0;
    }
  }
  if (steps == 0) return;
    // Groups are committed even where nothing is left to copy, so that counting them stays simple.
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) loader.Load(ring + s * Tile::kStageBytes);
    CommitCopies();
  }
  WaitForCopies<kStages - 2>();
  __syncthreads();
  const typename Tile::LaneOffsets lane;
  typename Tile::Fragments first, second;
  first.Load(ring, lane, 0);
  uint32_t stage = ring, refill = ring + (kStages - 1) * Tile::kStageBytes;
  const uint32_t last_stage = ring + (kStages - 1) * Tile::kStageBytes;
  for (int step = 0; step < steps; ++step) {
    second.Load(stage, lane, 1);
    if (step + kStages - 1 < steps) loader.Load(refill);
    CommitCopies();
    first.Multiply(acc);
    refill = stage;
    stage = stage == last_stage ? ring : stage + Tile::kStageBytes;
    WaitForCopies<kStages - 2>();
    __syncthreads();
    if (step + 1 < steps) first.Load(stage, lane, 0);
    second.Multiply(acc);
  }
}

}  // namespace filigree::mma
