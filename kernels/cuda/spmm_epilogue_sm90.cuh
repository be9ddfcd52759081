// How SpmmBsrKernel finishes a tile: bias, residual, GELU or its gradient on the fp32 sums, then bf16 to
// device memory.
//
// A warpgroup holds 64 features x 256 tokens: in thread `warp`, `lane`, acc[4j .. 4j + 3] are features
// 16 * warp + lane / 4 (+ 8 for the upper two) and tokens 8j + 2 * (lane % 4) (+ 1 for the odd ones).
// stmatrix transposes 8x8 tiles on the way to shared memory, so that a row there is one token's 64
// features, swizzled as the copy engine expects; the copy engine stores it and drops tokens beyond the
// end. The tile passes through two small buffers in chunks of kStoreTokens tokens.
//
// The gradient of a bias is the column sums of GELU's gradient: each thread sums its two features over
// its tokens as they pass, and writes one number for the four lanes that share them; the tiles'
// numbers are added up in order afterwards (SumColumnPartials).
//
// An operand of the output's shape (residual, gelu's input) comes the same way back: coalesced loads,
// shared memory, ldmatrix, which hands each thread the very elements it is to write. The producer has it
// brought into the L2 while the tile is being multiplied, and the first chunks are loaded into registers
// before that too, each later one when a chunk has left them: what an epilogue waits for would otherwise
// be one trip to device memory a chunk, longer than all its arithmetic.
#pragma once

#include "kernels/cuda/sm90_tma.cuh"
#include "kernels/cuda/spmm_shape_sm90.cuh"

namespace filigree::sm90 {

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

// tanh to 2^-11, a quarter of bf16's spacing.
__device__ __forceinline__ float ApproximateTanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

// tanh's argument is x * (k + k c x^2); the fewest instructions, since an epilogue runs them for every
// element on few warps.
__device__ __forceinline__ float GeluTanh(float x, float x2) {
  return ApproximateTanh(x * fmaf(kGeluScale * kGeluCubic, x2, kGeluScale));
}

__device__ __forceinline__ float Gelu(float x) {
  const float half = 0.5f * x;
  return fmaf(half, GeluTanh(x, x * x), half);
}

// (1 + t) / 2 + x / 2 * (1 - t^2) * k (1 + 3 c x^2).
__device__ __forceinline__ float GeluDerivative(float x) {
  const float x2 = x * x, t = GeluTanh(x, x2);
  const float slope = x * fmaf(1.5f * kGeluScale * kGeluCubic, x2, 0.5f * kGeluScale);
  return fmaf(slope, fmaf(-t, t, 1.0f), fmaf(0.5f, t, 0.5f));
}

__device__ __forceinline__ void StoreMatrixTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void LoadMatrixTransposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Chunks of a warpgroup's operand on their way, kDepth at a time: thread t holds 16 bytes of token rows
// t / 8, t / 8 + 16, ... of each.
template <int kStoreTokens>
struct OperandChunks {
  static constexpr int kRows = kStoreTokens / 16;
  static constexpr int kDepth = 8 / kRows;
  static constexpr int kChunks = 256 / kStoreTokens;
  uint4 data[kDepth][kRows];

  __device__ __forceinline__ void LoadFirst(const SpmmParams& params, int feature, int token) {
#pragma unroll
    for (int chunk = 0; chunk < kDepth; ++chunk) Load(params, feature, token, chunk);
  }
  // `feature` and `token` are the first of the warpgroup's part of the tile.
  __device__ __forceinline__ void Load(const SpmmParams& params, int feature, int token, int chunk) {
    if (chunk >= kChunks) return;
    const int thread = threadIdx.x % kWarpgroup, row = thread / 8, column = thread % 8 * 8;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int t = token + chunk * kStoreTokens + row + 16 * i;
      uint4& value = data[chunk % kDepth][i];
      value = make_uint4(0, 0, 0, 0);
      if (t < params.tokens) {
        value = __ldg(reinterpret_cast<const uint4*>(params.operand + t * params.operand_stride +
                                                     feature + column));
      }
    }
  }
  // Into the buffer as the copy engine would have put it.
  __device__ __forceinline__ void Put(uint8_t* buffer, int chunk) const {
    const int thread = threadIdx.x % kWarpgroup, row = thread / 8, column = thread % 8;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = row + 16 * i;
      *reinterpret_cast<uint4*>(buffer + r * kLineBytes + ((column ^ (r % 8)) * 16)) =
          data[chunk % kDepth][i];
    }
  }
};

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

// Sums over the tokens of a tile, for a thread's features f and f + 8.
struct FeatureSums {
  float low = 0, high = 0;

  // `packed` as StoreMatrixTransposed takes it.
  __device__ __forceinline__ void Add(const uint32_t (&packed)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = UnpackBf16(packed[i]);
      (i % 2 == 0 ? low : high) += pair.x + pair.y;
    }
  }
  // Tokens beyond the end have added zeros: their products are zero.
  __device__ __forceinline__ void Write(const SpmmParams& params, int feature, int token) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      low += __shfl_xor_sync(0xffffffffu, low, offset);
      high += __shfl_xor_sync(0xffffffffu, high, offset);
    }
    if (threadIdx.x % 4 != 0 || token >= params.tokens) return;
    float* row = params.sums + int64_t{token / 256} * params.features + feature;
    row[0] = low;
    row[8] = high;
  }
};

// One warpgroup's part of a tile. `buffers`: two of Shape::kStoreBytes, its own. `operand` has its first
// chunks.
template <int kFeatures, SpmmFinish kFinish>
__device__ __forceinline__ void StoreTile(
    const SpmmParams& params, const float (&acc)[128],
    OperandChunks<SpmmShape<kFeatures>::kStoreTokens>& operand, uint8_t* buffers, uint64_t policy,
    int group, int feature_begin, int token_begin) {
  using Shape = SpmmShape<kFeatures>;
  constexpr bool kHasOperand = HasOperand(kFinish);
  // With GELU every chunk is stored twice: the sum, then its activation.
  constexpr int kPasses = kFinish == SpmmFinish::kGelu ? 2 : 1;
  constexpr int kChunks = 256 / Shape::kStoreTokens;
  const int thread = threadIdx.x % kWarpgroup;
  const int warp = thread / 32;
  const int lane = thread % 32;
  // Lane l addresses row l % 8 of the 8x8 tile l / 8: tiles are (features 0-7 | 8-15) x two token
  // groups; 16-byte columns are swizzled by the row.
  const int store_row = (lane / 16) * 8 + lane % 8;
  const int store_column = (2 * warp + (lane / 8) % 2) ^ (lane % 8);
  float bias[2] = {0, 0};
  if (params.bias != nullptr) {
    bias[0] = __bfloat162float(params.bias[feature_begin + 16 * warp + lane / 4]);
    bias[1] = __bfloat162float(params.bias[feature_begin + 16 * warp + lane / 4 + 8]);
  }
  FeatureSums sums;
#pragma unroll
  for (int pass = 0; pass < kChunks * kPasses; ++pass) {
    const int chunk = pass / kPasses;
    uint8_t* buffer = buffers + (pass % 2) * Shape::kStoreBytes;
    if (thread == 0) TmaStoreWaitRead<1>();
    NamedBarrierSync(1 + group, kWarpgroup);
    if constexpr (kHasOperand) {
      operand.Put(buffer, chunk);
      operand.Load(params, feature_begin, token_begin, chunk + operand.kDepth);
      NamedBarrierSync(1 + group, kWarpgroup);
    }
    const uint32_t address = SharedAddress(buffer) + store_row * kLineBytes + store_column * 16;
#pragma unroll
    for (int t = 0; t < Shape::kStoreTokens; t += 16) {
      const int j = 4 * ((chunk * Shape::kStoreTokens + t) / 8);
      float value[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = acc[j + i] + bias[i / 2 % 2];
      if constexpr (kHasOperand) {
        uint32_t other[4];
        LoadMatrixTransposed(address + t * kLineBytes, other);
        Combine<kFinish>(value, other);
      }
      if (kFinish == SpmmFinish::kGelu && pass % 2 == 1) {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = Gelu(value[i]);
      }
      const uint32_t packed[4] = {PackBf16(value[0], value[1]), PackBf16(value[2], value[3]),
                                  PackBf16(value[4], value[5]), PackBf16(value[6], value[7])};
      if constexpr (kFinish == SpmmFinish::kGeluBackward) sums.Add(packed);
      StoreMatrixTransposed(address + t * kLineBytes, packed);
    }
    FenceProxyAsync();
    NamedBarrierSync(1 + group, kWarpgroup);
    if (thread == 0) {
      const bool first_of_two = kPasses == 2 && pass % 2 == 0;
      TmaStore2D(first_of_two ? &params.pre_activation : &params.output, buffer, policy,
                 feature_begin, token_begin + chunk * Shape::kStoreTokens);
      TmaStoreCommit();
    }
  }
  if constexpr (kFinish == SpmmFinish::kGeluBackward) {
    if (params.sums != nullptr) {
      sums.Write(params, feature_begin + 16 * warp + lane / 4, token_begin);
    }
  }
}

}  // namespace filigree::sm90
