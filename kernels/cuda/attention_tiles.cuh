// What the fallback's forward and backward kernels share: tiles of one head in shared memory, and
// the two products between them.
//
// A block has 256 threads as a square of 16 x 16; thread (y, x) owns rows y + 16 i of a tile of
// rows, and of the other side either rows x + 16 j (a tile of scores) or column pairs x + 16 c (an
// accumulator). Tiles hold BF16 pairs, padded with zeros to kWidth columns; the odd stride of rows
// keeps 16 rows in 16 banks.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/base/math.h"
#include "kernels/cuda/attention_fallback.h"
#include "kernels/cuda/cuda_check.h"

namespace filigree::attention_tiles {

constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;
constexpr float kLog2E = 1.44269504f;

// `kWidth`: the head size, rounded up to 32, 64, 128 or 256.
template <int kWidth>
struct Tile {
  static constexpr int kRows = kWidth <= 128 ? 64 : 32;
  static constexpr int kOwnRows = kRows / kSide;
  static constexpr int kPairs = kWidth / 2;
  static constexpr int kOwnPairs = kPairs / kSide;
  static constexpr int kStride = kPairs + 1;      // in pairs
  static constexpr int kScoreStride = kRows + 1;  // in floats
  static constexpr int kSize = kRows * kStride;   // in pairs
  static constexpr int kBytes = kSize * 4;
  static constexpr int kScoreBytes = kRows * kScoreStride * 4;

  using Scores = float[kOwnRows][kOwnRows];
  using Accumulator = float2[kOwnRows][kOwnPairs];
};

__device__ inline int OwnY() { return threadIdx.x / kSide; }
__device__ inline int OwnX() { return threadIdx.x % kSide; }

// One head of one sequence in a [T, heads * E] matrix.
template <typename T>
struct HeadRows {
  T* data;
  int64_t stride;
  int seq_len, head_size;
};

// Row 0 of the head `head` of `sequence`.
template <typename T>
__device__ HeadRows<T> HeadOf(T* matrix, int64_t stride, int seq_len, int head_size, int sequence,
                              int head) {
  return {matrix + sequence * stride * seq_len + static_cast<int64_t>(head) * head_size, stride,
          seq_len, head_size};
}

// Rows [first, first + kRows) of the head; zeros beyond the sequence and beyond the head.
template <int kWidth>
__device__ void Load(__nv_bfloat162* tile, const HeadRows<const __nv_bfloat16>& head, int first) {
  using Shape = Tile<kWidth>;
  const __nv_bfloat16 zero = __float2bfloat16_rn(0);
  for (int i = threadIdx.x; i < Shape::kRows * Shape::kPairs; i += kThreads) {
    const int row = i / Shape::kPairs, pair = i % Shape::kPairs;
    __nv_bfloat162 value = {zero, zero};
    if (first + row < head.seq_len) {
      const __nv_bfloat16* source = head.data + (first + row) * head.stride + 2 * pair;
      if (2 * pair < head.head_size) value.x = source[0];
      if (2 * pair + 1 < head.head_size) value.y = source[1];
    }
    tile[row * Shape::kStride + pair] = value;
  }
}

// out[i][j] = row y + 16 i of a . row x + 16 j of b.
template <int kWidth>
__device__ void DotRows(const __nv_bfloat162* a, const __nv_bfloat162* b,
                        typename Tile<kWidth>::Scores& out) {
  using Shape = Tile<kWidth>;
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    for (int j = 0; j < Shape::kOwnRows; ++j) out[i][j] = 0;
  }
  a += OwnY() * Shape::kStride;
  b += OwnX() * Shape::kStride;
#pragma unroll 4
  for (int pair = 0; pair < Shape::kPairs; ++pair) {
    float2 left[Shape::kOwnRows], right[Shape::kOwnRows];
    for (int i = 0; i < Shape::kOwnRows; ++i) {
      left[i] = __bfloat1622float2(a[i * kSide * Shape::kStride + pair]);
      right[i] = __bfloat1622float2(b[i * kSide * Shape::kStride + pair]);
    }
    for (int i = 0; i < Shape::kOwnRows; ++i) {
      for (int j = 0; j < Shape::kOwnRows; ++j) {
        out[i][j] = fmaf(left[i].x, right[j].x, fmaf(left[i].y, right[j].y, out[i][j]));
      }
    }
  }
}

// Where this thread's scores lie in the shared tile: [i][j] at Own(scores)[16 i * stride + 16 j].
template <int kWidth>
__device__ void Store(float* tile, const typename Tile<kWidth>::Scores& scores) {
  using Shape = Tile<kWidth>;
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    for (int j = 0; j < Shape::kOwnRows; ++j) {
      tile[(OwnY() + i * kSide) * Shape::kScoreStride + OwnX() + j * kSide] = scores[i][j];
    }
  }
}

// sum[i][c] += row y + 16 i of scores [kRows, kRows] . column pair x + 16 c of rows.
template <int kWidth>
__device__ void AddProduct(const float* scores, const __nv_bfloat162* rows,
                           typename Tile<kWidth>::Accumulator& sum) {
  using Shape = Tile<kWidth>;
  scores += OwnY() * Shape::kScoreStride;
  rows += OwnX();
#pragma unroll 4
  for (int row = 0; row < Shape::kRows; ++row) {
    float weight[Shape::kOwnRows];
    for (int i = 0; i < Shape::kOwnRows; ++i) {
      weight[i] = scores[i * kSide * Shape::kScoreStride + row];
    }
    for (int c = 0; c < Shape::kOwnPairs; ++c) {
      const float2 value = __bfloat1622float2(rows[row * Shape::kStride + c * kSide]);
      for (int i = 0; i < Shape::kOwnRows; ++i) {
        sum[i][c].x = fmaf(weight[i], value.x, sum[i][c].x);
        sum[i][c].y = fmaf(weight[i], value.y, sum[i][c].y);
      }
    }
  }
}

template <int kWidth>
__device__ void Clear(typename Tile<kWidth>::Accumulator& sum) {
  for (auto& row : sum) {
    for (float2& pair : row) pair = {0, 0};
  }
}

// Row y + 16 i of the tile at `first` becomes factor[i] * sum[i], rounded.
template <int kWidth>
__device__ void Write(const HeadRows<__nv_bfloat16>& head, int first,
                      const typename Tile<kWidth>::Accumulator& sum,
                      const float (&factor)[Tile<kWidth>::kOwnRows]) {
  using Shape = Tile<kWidth>;
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    const int row = first + OwnY() + i * kSide;
    if (row >= head.seq_len) continue;
    __nv_bfloat16* out = head.data + row * head.stride;
    for (int c = 0; c < Shape::kOwnPairs; ++c) {
      const int column = 2 * (OwnX() + c * kSide);
      if (column < head.head_size) out[column] = __float2bfloat16_rn(factor[i] * sum[i][c].x);
      if (column + 1 < head.head_size) {
        out[column + 1] = __float2bfloat16_rn(factor[i] * sum[i][c].y);
      }
    }
  }
}

// Calls launch(std::integral_constant<int, kWidth>) with the width for this head size.
template <typename Launch>
void ForWidth(int64_t head_size, Launch launch) {
  CHECK_LE(head_size, kAttentionFallbackHeadSize);
  if (head_size <= 32) return launch(std::integral_constant<int, 32>());
  if (head_size <= 64) return launch(std::integral_constant<int, 64>());
  if (head_size <= 128) return launch(std::integral_constant<int, 128>());
  launch(std::integral_constant<int, 256>());
}

// A block for each tile of rows, head and sequence, with `shared_bytes` of dynamic shared memory.
template <int kWidth, typename Params>
void LaunchTiles(void (*kernel)(Params), const Params& params, const AttentionShape& shape,
                 int64_t heads, int shared_bytes, cudaStream_t stream) {
  CHECK_LE(shape.sequences, 65535) << "sequences in one call";
  CHECK_LE(heads, 65535);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  const dim3 grid(static_cast<unsigned>(CeilDiv(shape.seq_len, Tile<kWidth>::kRows)),
                  static_cast<unsigned>(heads), static_cast<unsigned>(shape.sequences));
  kernel<<<grid, kThreads, shared_bytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree::attention_tiles
