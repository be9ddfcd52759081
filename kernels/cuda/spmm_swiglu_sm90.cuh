// How SpmmBsrKernel finishes a tile of the gradient of silu(gate) * up: both operands come and both
// gradients leave by the same buffers (spmm_ship_sm90.cuh), up and its gradient in the first of a
// pair, gate and its own in the second. So half of a tile's operands are there when its products
// end, and the other half arrives in the buffers that the first gradients leave.
//
// Bytes an element of the output: 8, none of them the gradient of silu(gate) * up itself.
#pragma once

#include "kernels/cuda/spmm_epilogue_sm90.cuh"

namespace filigree::sm90 {

// 1 / (1 + 2^(-x log2(e))); 0 where the power overflows.
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

}  // namespace filigree::sm90
