// GELU's derivative in codes of one byte (kernels/base/gelu_code.h) in SpmmBsrKernel's epilogues:
// forward makes them beside gelu, backward multiplies by what they stand for.
//
// A warpgroup's codes are a tile of 256 tokens x 64 features, a byte each, in shared memory as the
// copy engine has it: lines of 64 bytes, swizzled. To stmatrix and ldmatrix, which move 16 bits, a
// unit is the codes of features 2r and 2r + 1 at one token, and belongs to the threads `lane / 4` =
// r; but the sums of thread r are of features r and r + 8. Two shuffles for 16 tokens trade them.
#pragma once

#include "kernels/base/gelu_code.h"
#include "kernels/cuda/sm90_matrix.cuh"
#include "kernels/cuda/spmm_gelu_sm90.cuh"

namespace filigree::sm90 {

// gelu(x) = x s with s = (1 + tanh(x i)) / 2, i = k (1 + c x^2); gelu'(x) = s (1 + (x - x s)(6 i - 4 k)).
// Its code is the second byte of `code`: to 2^15 and the code, rounded by adding a half and cutting
// off, there are 8 bits of fraction below. Four instructions beside gelu's.
__device__ __forceinline__ float GeluWithCode(float x, uint32_t* code) {
  constexpr float kUnit = kGeluCodesPerUnit;
  const float inner = fmaf(kGeluScale * kGeluCubic, x * x, kGeluScale);
  const float s = fmaf(0.5f, ApproximateTanh(x * inner), 0.5f), y = x * s;
  const float slope = fmaf(6.0f * kUnit, inner, -4.0f * kUnit * kGeluScale);
  *code = __float_as_uint(fmaf(s, fmaf(x - y, slope, kUnit), kGeluCodeOfZero + 0.5f + 32768.0f));
  return y;
}

// What the code in byte `i` of a word stands for. As the second byte of a float it is code / 256
// above 128.
__device__ __forceinline__ float DerivativeOf(uint32_t codes, int i) {
  constexpr float kStep = 256.0f / kGeluCodesPerUnit;
  const float shifted = __uint_as_float(__byte_perm(codes, 0x43000000, 0x7404 | i << 4));
  return fmaf(shifted, kStep, -(128.0f + kGeluCodeOfZero / 256.0f) * kStep);
}

// The codes of a thread's two features, f and f + 8, at four tokens: 2c, 2c + 1, 2c + 8, 2c + 9 of
// sixteen, c = lane % 4.
struct RowCodes {
  uint32_t low, high;
};

// Trades codes between the threads of a warp that have them by rows and those that move them.
class CodeExchange {
 public:
  __device__ __forceinline__ CodeExchange() {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    odd_ = row % 2 != 0;
    // Of units 0 to 3 both features come from the low rows of 2r and 2r + 1, of the others from the
    // high rows of 2r - 8 and 2r - 7. In the first shuffle even threads give their low row and odd
    // ones their high row, in the second the other.
    const bool low = row < 4;
    units_first_ = 4 * (low ? 2 * row : 2 * row - 7) + column;
    units_second_ = 4 * (low ? 2 * row + 1 : 2 * row - 8) + column;
    interleave_ = low ? 0x5140 : 0x1504;
    // The way back: features of thread 2s and 2s + 1 from unit s, their second ones from s + 4. In the
    // first shuffle units 0 to 3 give their even feature and the others their odd one.
    rows_first_ = 4 * (odd_ ? 4 + row / 2 : row / 2) + column;
    rows_second_ = 4 * (odd_ ? row / 2 : 4 + row / 2) + column;
    give_ = low ? 0x6420 : 0x7531;
  }

  // Two units: at tokens 2c, 2c + 1, and at 2c + 8, 2c + 9.
  __device__ __forceinline__ void ToUnits(const RowCodes& rows, uint32_t* units) const {
    const uint32_t first = Shuffle(odd_ ? rows.high : rows.low, units_first_);
    const uint32_t second = Shuffle(odd_ ? rows.low : rows.high, units_second_);
    units[0] = __byte_perm(first, second, interleave_);
    units[1] = __byte_perm(first, second, interleave_ + 0x2222);
  }
  __device__ __forceinline__ RowCodes ToRows(const uint32_t* units) const {
    const uint32_t first = Shuffle(__byte_perm(units[0], units[1], give_), rows_first_);
    const uint32_t second =
        Shuffle(__byte_perm(units[0], units[1], give_ ^ (0x6420 ^ 0x7531)), rows_second_);
    return odd_ ? RowCodes{second, first} : RowCodes{first, second};
  }

 private:
  static __device__ __forceinline__ uint32_t Shuffle(uint32_t value, int from) {
    return __shfl_sync(0xFFFFFFFFu, value, from);
  }

  bool odd_;
  int units_first_, units_second_, rows_first_, rows_second_;
  uint32_t interleave_, give_;
};

// The second bytes of four words.
__device__ __forceinline__ uint32_t SecondBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x51), __byte_perm(c, d, 0x51), 0x5410);
}

// A thread's codes of one chunk of 32 tokens; nothing where the finish has none.
template <SpmmFinish kFinish>
class CodeChunk {
 public:
  // `tile` is the warpgroup's.
  __device__ __forceinline__ explicit CodeChunk(const uint8_t* tile) {
    if constexpr (HasCodes(kFinish)) {
      // Lane l addresses token l, the 16 features of its warp; 16-byte columns are swizzled by the row.
      const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
      address_ = SharedAddress(tile) + lane * kCodeLineBytes + (warp ^ (lane / 2 % 4)) * 16;
    }
  }

  // Before the values of a chunk, for each 16 tokens of it, and after.
  __device__ __forceinline__ void Begin(int chunk) {
    if constexpr (kFinish == SpmmFinish::kGeluCodeBackward) {
      LoadMatrixTransposed(address_ + chunk * kChunkBytes, units_);
    }
  }
  // Sums to gelu's values, or gradients of them to gradients of the sums; as accumulators lie.
  __device__ __forceinline__ void Apply(int half, float (&value)[8]) {
    if constexpr (kFinish == SpmmFinish::kGeluCode) {
      uint32_t code[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = GeluWithCode(value[i], &code[i]);
      exchange_.ToUnits({SecondBytes(code[0], code[1], code[4], code[5]),
                         SecondBytes(code[2], code[3], code[6], code[7])},
                        units_ + 2 * half);
    } else if constexpr (kFinish == SpmmFinish::kGeluCodeBackward) {
      const RowCodes rows = exchange_.ToRows(units_ + 2 * half);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        value[i] *= DerivativeOf(i / 2 % 2 == 0 ? rows.low : rows.high, i / 4 * 2 + i % 2);
      }
    }
  }
  __device__ __forceinline__ void End(int chunk) {
    if constexpr (kFinish == SpmmFinish::kGeluCode) {
      StoreMatrixTransposed(address_ + chunk * kChunkBytes, units_);
    }
  }

 private:
  static constexpr int kChunkBytes = 32 * kCodeLineBytes;

  CodeExchange exchange_;
  uint32_t address_ = 0;
  uint32_t units_[4];
};

}  // namespace filigree::sm90
