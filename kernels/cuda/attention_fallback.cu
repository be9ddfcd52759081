// AttentionFallbackKernel: out and lse of one tile of queries of one head.
//
// Grid: (tiles of queries, the longest first; heads; sequences). Block: 256 threads. Shared memory:
// the queries, one tile of keys and then of values, the tile's probabilities: 84 KiB at most.
// FLOPs: 2 B H S^2 E (half of the square is skipped). Keys and values are read once a tile of
// queries.
#include <cmath>

#include "kernels/cuda/attention_tiles.cuh"

namespace filigree {
namespace {

using namespace attention_tiles;  // NOLINT: device primitives, file-local

struct ForwardParams {
  const __nv_bfloat16 *q, *k, *v;
  __nv_bfloat16* out;
  float* lse;  // [B, H, S]
  int64_t q_stride, k_stride, v_stride, out_stride;
  int seq_len, heads, group, head_size;  // `group` query heads share a key-value head
  float scale_log2;                      // scale * log2(e): exponentials are of base 2
};

// The largest and the sum of one value a thread over the 16 threads of a row.
__device__ float RowMax(float value) {
  for (int lane = kSide / 2; lane > 0; lane /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lane));
  }
  return value;
}
__device__ float RowSum(float value) {
  for (int lane = kSide / 2; lane > 0; lane /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, lane);
  }
  return value;
}

// The running softmax of the thread's rows.
template <int kWidth>
struct Softmax {
  static constexpr int kOwnRows = Tile<kWidth>::kOwnRows;
  float max[kOwnRows], sum[kOwnRows];  // of base-2 scores; of their exponentials

  // Turns the scores of keys from `key` on into probabilities relative to the new maximum, and
  // rescales what was summed. Every tile begins at or before the row, so that the maximum is
  // finite.
  __device__ void Add(int query, int key, float scale_log2, typename Tile<kWidth>::Scores& scores,
                      typename Tile<kWidth>::Accumulator& out) {
    for (int i = 0; i < kOwnRows; ++i) {
      float tile_max = -INFINITY;
      for (int j = 0; j < kOwnRows; ++j) {
        const bool seen = key + OwnX() + j * kSide <= query + OwnY() + i * kSide;
        scores[i][j] = seen ? scores[i][j] * scale_log2 : -INFINITY;
        tile_max = fmaxf(tile_max, scores[i][j]);
      }
      const float new_max = fmaxf(max[i], RowMax(tile_max));
      float tile_sum = 0;
      for (int j = 0; j < kOwnRows; ++j) {
        scores[i][j] = exp2f(scores[i][j] - new_max);
        tile_sum += scores[i][j];
      }
      const float correction = exp2f(max[i] - new_max);
      sum[i] = sum[i] * correction + RowSum(tile_sum);
      max[i] = new_max;
      for (float2& pair : out[i]) pair = {pair.x * correction, pair.y * correction};
    }
  }
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads) AttentionFallbackKernel(ForwardParams p) {
  using Shape = Tile<kWidth>;
  extern __shared__ __nv_bfloat162 shared[];
  __nv_bfloat162* queries = shared;
  __nv_bfloat162* keys_or_values = queries + Shape::kSize;
  float* probabilities = reinterpret_cast<float*>(keys_or_values + Shape::kSize);
  const int head = blockIdx.y, sequence = blockIdx.z;
  const int first = (gridDim.x - 1 - blockIdx.x) * Shape::kRows;
  const auto k = HeadOf(p.k, p.k_stride, p.seq_len, p.head_size, sequence, head / p.group);
  const auto v = HeadOf(p.v, p.v_stride, p.seq_len, p.head_size, sequence, head / p.group);

  Softmax<kWidth> softmax;
  typename Shape::Accumulator out;
  Clear<kWidth>(out);
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    softmax.max[i] = -INFINITY;
    softmax.sum[i] = 0;
  }
  Load<kWidth>(queries, HeadOf(p.q, p.q_stride, p.seq_len, p.head_size, sequence, head), first);
  for (int key = 0; key <= first; key += Shape::kRows) {
    __syncthreads();
    Load<kWidth>(keys_or_values, k, key);
    __syncthreads();
    typename Shape::Scores scores;
    DotRows<kWidth>(queries, keys_or_values, scores);
    softmax.Add(first, key, p.scale_log2, scores, out);
    Store<kWidth>(probabilities, scores);
    __syncthreads();
    Load<kWidth>(keys_or_values, v, key);
    __syncthreads();
    AddProduct<kWidth>(probabilities, keys_or_values, out);
  }

  float factor[Shape::kOwnRows];
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    factor[i] = 1 / softmax.sum[i];
    const int row = first + OwnY() + i * kSide;
    if (OwnX() == 0 && row < p.seq_len) {
      p.lse[(static_cast<int64_t>(sequence) * p.heads + head) * p.seq_len + row] =
          softmax.max[i] / kLog2E + logf(softmax.sum[i]);
    }
  }
  Write<kWidth>(HeadOf(p.out, p.out_stride, p.seq_len, p.head_size, sequence, head), first, out,
                factor);
}

}  // namespace

void LaunchAttentionFallback(const AttentionArgs& args, const AttentionShape& shape,
                             cudaStream_t stream) {
  const ForwardParams params = {
      .q = static_cast<const __nv_bfloat16*>(args.q.data()),
      .k = static_cast<const __nv_bfloat16*>(args.k.data()),
      .v = static_cast<const __nv_bfloat16*>(args.v.data()),
      .out = static_cast<__nv_bfloat16*>(args.out.data()),
      .lse = args.lse.As<float>(),
      .q_stride = args.q.row_stride(),
      .k_stride = args.k.row_stride(),
      .v_stride = args.v.row_stride(),
      .out_stride = args.out.row_stride(),
      .seq_len = static_cast<int>(shape.seq_len),
      .heads = static_cast<int>(shape.heads),
      .group = static_cast<int>(shape.heads / shape.kv_heads),
      .head_size = static_cast<int>(shape.head_size),
      .scale_log2 = shape.scale() * kLog2E,
  };
  ForWidth(shape.head_size, [&](auto width) {
    using Shape = Tile<width()>;
    LaunchTiles<width()>(AttentionFallbackKernel<width()>, params, shape, shape.heads,
                         2 * Shape::kBytes + Shape::kScoreBytes, stream);
  });
}

}  // namespace filigree
