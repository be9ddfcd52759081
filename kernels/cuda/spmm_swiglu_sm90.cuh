// SwiGLU and its gradient on the way out of SpmmBsrKernel.
//
// Forward, a worker's tiles are pairs: gate's and then up's of the same features and tokens. Gate's
// tile leaves by a buffer for every chunk, where it is still when up's sums are there; up's chunk
// replaces it, once it is stored, and then silu(gate) * up that. So buffers go round three times a
// pair, and nothing is read that was made before. Bytes an element of silu(gate) * up: 6.
//
// A tile of the gradient of silu(gate) * up: both operands come and both gradients leave by the
// same buffers (spmm_ship_sm90.cuh), up and its gradient in the first of a pair, gate and its own in
// the second. So half of a tile's operands are there when its products end, and the other half
// arrives in the buffers that the first gradients leave. Bytes an element of the output: 8, none of
// them the gradient of silu(gate) * up itself.
#pragma once

#include "kernels/cuda/spmm_epilogue_sm90.cuh"

namespace filigree::sm90 {

// 1 / (1 + 2^(-x log2(e))); 0 where the power overflows. The same bits as the passes' sigmoid.
__device__ __forceinline__ float Sigmoid(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + power));
  return y;
}

// The gradient dy of silu(gate) * up becomes gate's, and `up` up's.
__device__ __forceinline__ void SwiGluBackward(float gate, float& dy, float& up) {
  const float s = Sigmoid(gate), silu = gate * s;
  const float dup = dy * silu;
  dy *= up * fmaf(silu, 1.0f - s, s);
  up = dup;
}

// As WriteTile.
template <typename Shape>
__device__ __forceinline__ void WriteSwiGluTile(float (&acc)[128], uint8_t* buffers,
                                                StoreBarriers<Shape::kBuffers>& barriers,
                                                int tile) {
  constexpr int kPairs = Shape::kBuffers / 2, kRounds = Shape::kChunks / kPairs;
  const uint32_t lane_address = LaneAddress(buffers);
#pragma unroll
  for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
    const int first = chunk % kPairs * 2;
    const uint32_t round = tile * kRounds + chunk / kPairs;
    for (int i = first; i < first + 2; ++i) BarrierWait(&barriers.ready[i], round % 2);
#pragma unroll
    for (int t = 0; t < Shape::kStoreTokens; t += 16) {
      const uint32_t up_address = lane_address + first * Shape::kStoreBytes + t * kLineBytes;
      const uint32_t gate_address = up_address + Shape::kStoreBytes;
      float* dy = acc + 4 * ((chunk * Shape::kStoreTokens + t) / 8);
      uint32_t gate[4], up[4];
      LoadMatrixTransposed(up_address, up);
      LoadMatrixTransposed(gate_address, gate);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 g = UnpackBf16(gate[i]);
        float2 u = UnpackBf16(up[i]);
        SwiGluBackward(g.x, dy[2 * i], u.x);
        SwiGluBackward(g.y, dy[2 * i + 1], u.y);
        gate[i] = PackBf16(dy[2 * i], dy[2 * i + 1]);
        up[i] = PackBf16(u.x, u.y);
      }
      StoreMatrixTransposed(up_address, up);
      StoreMatrixTransposed(gate_address, gate);
    }
    FenceProxyAsync();
    __syncwarp();
    if (threadIdx.x % 32 != 0) continue;
    for (int i = first; i < first + 2; ++i) BarrierArrive(&barriers.written[i]);
  }
}

// Of gate and up as they are stored, rounded, and in the order of the pass that makes it elsewhere
// (activation_ops.cu): the same bits.
__device__ __forceinline__ uint32_t SwiGluPair(uint32_t gate, uint32_t up) {
  const float2 g = UnpackBf16(gate), u = UnpackBf16(up);
  return PackBf16(g.x * (Sigmoid(g.x) * u.x), g.y * (Sigmoid(g.y) * u.y));
}

// Gate's tile of a pair, of which `pairs` were before. Buffers go round three times a pair.
template <typename Shape>
__device__ __forceinline__ void WriteGateTile(const SpmmParams& params, float (&acc)[128],
                                              const FeatureBias<true>& bias, uint8_t* buffers,
                                              StoreBarriers<Shape::kBuffers>& barriers, int pairs,
                                              const SpmmPart& part) {
  static_assert(Shape::kBuffers == Shape::kChunks);
  WriteTile<Shape, SpmmFinish::kStore>(params, acc, bias, buffers, barriers, 3 * pairs, part);
}

// Up's tile, whose gate is in the buffers.
template <typename Shape>
__device__ __forceinline__ void WriteUpTile(float (&acc)[128], const FeatureBias<true>& bias,
                                            uint8_t* buffers,
                                            StoreBarriers<Shape::kBuffers>& barriers, int pairs) {
  // With more between fences the compiler holds so much at once that registers spill.
  constexpr int kChunks = Shape::kChunks, kFenced = 2;
  const uint32_t lane_address = LaneAddress(buffers);
#pragma unroll
  for (int pass = 0; pass < 2 * kChunks; ++pass) {
    const int chunk = pass % kChunks;
    BarrierWait(&barriers.ready[chunk], (3 * pairs + 1 + pass / kChunks) % 2);
#pragma unroll
    for (int t = 0; t < Shape::kStoreTokens; t += 16) {
      const uint32_t address = lane_address + chunk * Shape::kStoreBytes + t * kLineBytes;
      float* sum = acc + 4 * ((chunk * Shape::kStoreTokens + t) / 8);
      uint32_t packed[4];
      if (pass < kChunks) {
        uint32_t gate[4];
        LoadMatrixTransposed(address, gate);
        bias.AddTo(sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) packed[i] = PackBf16(sum[2 * i], sum[2 * i + 1]);
        // The second pass finds its results, as pairs, in the sums' place.
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = __uint_as_float(SwiGluPair(gate[i], packed[i]));
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) packed[i] = __float_as_uint(sum[i]);
      }
      StoreMatrixTransposed(address, packed);
    }
    if (pass % kFenced == kFenced - 1) HandOver<kFenced>(barriers, chunk);
  }
}

// As Ship: gate's tiles go to the first half of the output's features, up's to the second and what
// is made of both to `beside`.
template <typename Shape>
__device__ __forceinline__ void ShipPairs(const SpmmParams& params, uint8_t* buffers,
                                          StoreBarriers<Shape::kBuffers>& barriers, uint32_t rank,
                                          int group, int tile_begin, int tile_end) {
  constexpr int kBuffers = Shape::kBuffers;
  const uint64_t policy = PolicyEvictFirst();
  for (int i = 0; i < kBuffers; ++i) BarrierArrive(&barriers.ready[i]);
  int round = 0;
  for (int index = tile_begin; index < tile_end; ++index) {
    const SpmmPart part = PartOf<Shape>(LoadTile(params.tiles, index), rank, group);
    const int stores = 1 + (index - tile_begin) % 2;
    for (int i = 0; i < stores; ++i, ++round) {
      const CUtensorMap* map = i == 0 ? &params.output : &params.beside;
      const int feature = part.feature - (i == 0 ? 0 : params.features / 2);
      for (int buffer = 0; buffer < kBuffers; ++buffer) {
        BarrierWait(&barriers.written[buffer], round % 2);
        TmaStore2D(map, buffers + buffer * Shape::kStoreBytes, policy, feature,
                   part.token + buffer * Shape::kStoreTokens);
        TmaStoreCommit();
        if (round + buffer == 0) continue;
        TmaStoreWaitRead<1>();
        BarrierArrive(&barriers.ready[(buffer + kBuffers - 1) % kBuffers]);
      }
    }
  }
  TmaStoreWaitRead<0>();
}

}  // namespace filigree::sm90
