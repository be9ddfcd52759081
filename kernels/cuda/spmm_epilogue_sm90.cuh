// How SpmmBsrKernel finishes a tile: bias, residual, GELU or its gradient on the fp32 sums, then
// bf16 to device memory.
//
// A warpgroup holds 64 features x 256 tokens: in thread `warp`, `lane`, acc[4j .. 4j + 3] are
// features 16 * warp + lane / 4 (+ 8 for the upper two) and tokens 8j + 2 * (lane % 4) (+ 1 for the
// odd ones). stmatrix transposes 8x8 tiles on the way to shared memory, so that a row there is one
// token's 64 features, swizzled as the copy engine expects. The tile passes through small buffers
// in chunks of kStoreTokens tokens, which another warp stores (spmm_ship_sm90.cuh).
//
// An operand of the output's shape (residual, gelu's input) comes the same way back: the other warp
// has loaded it into the very buffer, and ldmatrix hands each thread the elements whose place it is
// to write. Codes have a place of their own, for a whole tile (spmm_gelu_code_sm90.cuh).
//
// The gradient of a bias is the column sums of GELU's gradient: each thread has the sums of two
// features over the tile's tokens as they are stored, and one lane of the four that share them
// writes them; the tiles' numbers are added up in order afterwards (SumColumnPartials).
#pragma once

#include "kernels/cuda/sm90_matrix.cuh"
#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/spmm_gelu_code_sm90.cuh"
#include "kernels/cuda/spmm_gelu_sm90.cuh"
#include "kernels/cuda/spmm_shape_sm90.cuh"

namespace filigree::sm90 {

// In one instruction each; through the halves of __nv_bfloat162 the compiler takes two or three.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
}

// Combines a thread's four sums with the operand's elements at the same places.
template <SpmmFinish kFinish>
__device__ __forceinline__ void Combine(float (&value)[8], const uint32_t (&operand)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackBf16(operand[i]);
    if constexpr (kFinish == SpmmFinish::kResidual) {
      value[2 * i] += pair.x;
      value[2 * i + 1] += pair.y;
    } else {
      value[2 * i] *= GeluDerivative(pair.x);
      value[2 * i + 1] *= GeluDerivative(pair.y);
    }
  }
}

// Sums over the tokens of a tile, for a thread's features f and f + 8. Results as
// StoreMatrixTransposed takes them are the A operand of m16n8k16, rows features and columns tokens:
// with ones as B the tensor core adds them up, one instruction for what would be 16 and a shuffle;
// every column has the sums.
struct FeatureSums {
  float sum[4] = {0, 0, 0, 0};

  __device__ __forceinline__ void Add(const uint32_t (&packed)[4]) {
    constexpr uint32_t kOnes = 0x3F803F80;  // two of bf16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3]), "r"(kOnes));
  }
  // Tokens beyond the end have added zeros: their products are zero.
  __device__ __forceinline__ void Write(const SpmmParams& params, int feature, int token) const {
    if (threadIdx.x % 4 != 0 || token >= params.tokens) return;
    float* row = params.sums + int64_t{token / 256} * params.features + feature;
    row[0] = sum[0];
    row[8] = sum[2];
  }
};

// Where stmatrix and ldmatrix find this lane's row of the first buffer's first 16 tokens. Lane l
// addresses row l % 8 of the 8x8 tile l / 8: tiles are (features 0-7 | 8-15) x two token groups;
// 16-byte columns are swizzled by the row.
__device__ __forceinline__ uint32_t LaneAddress(const uint8_t* buffers) {
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  const int row = (lane / 16) * 8 + lane % 8;
  const int column = (2 * warp + (lane / 8) % 2) ^ (lane % 8);
  return SharedAddress(buffers) + row * kLineBytes + column * 16;
}

// The first of a thread's two features within its warpgroup's 64.
__device__ __forceinline__ int ThreadFeature() {
  return threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
}

// The bias of a thread's two features; GELU's gradient has none (kAny).
template <bool kAny>
struct FeatureBias {
  float low = 0, high = 0;

  __device__ __forceinline__ FeatureBias(const SpmmParams& params, const SpmmPart& part) {
    if (!kAny || params.bias == nullptr) return;
    low = __bfloat162float(params.bias[part.feature + ThreadFeature()]);
    high = __bfloat162float(params.bias[part.feature + ThreadFeature() + 8]);
  }
  // To sums that lie as accumulators do.
  __device__ __forceinline__ void AddTo(float* acc) const {
    if constexpr (kAny) {
#pragma unroll
      for (int i = 0; i < 8; ++i) acc[i] += i / 2 % 2 == 0 ? low : high;
    }
  }
};

// This warp's results are in the kFenced buffers up to `buffer`, which share a fence: it waits for
// all that a warp has written. At most half of the buffers, since one is made ready again when the
// one after it has been handed over.
template <int kFenced, int kBuffers>
__device__ __forceinline__ void HandOver(StoreBarriers<kBuffers>& barriers, int buffer) {
  static_assert(2 * kFenced <= kBuffers);
  FenceProxyAsync();
  __syncwarp();
  const int lane = threadIdx.x % 32;
  if (lane < kFenced) BarrierArrive(&barriers.written[buffer - (kFenced - 1) + lane]);
}

// One warpgroup's part of a tile: pass by pass into its next buffer, from which Ship stores it.
// Warps wait for nobody but the buffer. `tile` counts the worker's.
template <typename Shape, SpmmFinish kFinish>
__device__ __forceinline__ void WriteTile(const SpmmParams& params, float (&acc)[128],
                                          const FeatureBias<!IsGeluBackward(kFinish)>& bias,
                                          uint8_t* buffers,
                                          StoreBarriers<Shape::kBuffers>& barriers, int tile,
                                          const SpmmPart& part) {
  constexpr int kStores = StoresPerChunk(kFinish), kPasses = Shape::kChunks * kStores;
  // Passes that share a fence. GELU gains nothing by it.
  constexpr int kFenced = kStores == 1 && !HasCodes(kFinish) ? Shape::kBuffers / 2 : 1;
  const uint32_t lane_address = LaneAddress(buffers);
  FeatureSums sums;
  CodeChunk<kFinish> codes(buffers + Shape::kCodeOffset);
  if constexpr (HasCodes(kFinish)) BarrierWait(&barriers.codes, tile % 2);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int chunk = pass / kStores, buffer = pass % Shape::kBuffers;
    constexpr int kRounds = kPasses / Shape::kBuffers;
    BarrierWait(&barriers.ready[buffer], (tile * kRounds + pass / Shape::kBuffers) % 2);
    codes.Begin(chunk);
#pragma unroll
    for (int t = 0; t < Shape::kStoreTokens; t += 16) {
      const uint32_t address = lane_address + buffer * Shape::kStoreBytes + t * kLineBytes;
      float* sum = acc + 4 * ((chunk * Shape::kStoreTokens + t) / 8);
      if (pass % kStores == 0) bias.AddTo(sum);
      float value[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = pass % kStores == 0 ? sum[i] : Gelu(sum[i]);
      if constexpr (HasOperand(kFinish)) {
        uint32_t other[4];
        LoadMatrixTransposed(address, other);
        Combine<kFinish>(value, other);
      }
      codes.Apply(t / 16, value);
      const uint32_t packed[4] = {PackBf16(value[0], value[1]), PackBf16(value[2], value[3]),
                                  PackBf16(value[4], value[5]), PackBf16(value[6], value[7])};
      if constexpr (IsGeluBackward(kFinish)) sums.Add(packed);
      StoreMatrixTransposed(address, packed);
    }
    codes.End(chunk);
    if (pass % kFenced == kFenced - 1) HandOver<kFenced>(barriers, buffer);
  }
  if constexpr (IsGeluBackward(kFinish)) {
    if (params.sums != nullptr) sums.Write(params, part.feature + ThreadFeature(), part.token);
  }
}

}  // namespace filigree::sm90
