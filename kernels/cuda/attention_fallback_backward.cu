// The fallback's backward pass: with p = exp(scale q k^T - lse) and delta = rowsum(dout * out),
//   dv = p^T dout;  ds = scale p (dout v^T - delta);  dq = ds k;  dk = ds^T q.
//
// AttentionFallbackDeltaKernel: a warp for each token and head. AttentionFallbackQueryGradKernel:
// dq of one tile of queries, over its keys. AttentionFallbackKeyGradKernel: dk and dv of one tile
// of keys, over the queries of every head that reads them, in ascending order. Both grids: (tiles,
// the longest first; heads; sequences), 256 threads. Shared memory: two tiles of their own, two
// passing ones, and one or two of scores: 99 KiB at most. FLOPs: 7 B H S^2 E together.
#include "kernels/cuda/attention_tiles.cuh"

namespace filigree {
namespace {

using namespace attention_tiles;  // NOLINT: device primitives, file-local

constexpr int kWarp = 32;

struct BackwardParams {
  const __nv_bfloat16 *q, *k, *v, *out, *dout;
  const float* lse;  // [B, H, S]
  float* delta;      // [B, H, S]
  __nv_bfloat16 *dq, *dk, *dv;
  int64_t q_stride, k_stride, v_stride, out_stride, dout_stride, dq_stride, dk_stride, dv_stride;
  int sequences, seq_len, heads, group, head_size;  // `group` query heads share a key-value head
  float scale;

  __device__ int64_t StatisticsOf(int sequence, int head) const {
    return (static_cast<int64_t>(sequence) * heads + head) * seq_len;
  }
};

__global__ void AttentionFallbackDeltaKernel(BackwardParams p) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (row >= static_cast<int64_t>(p.sequences) * p.heads * p.seq_len) return;
  const int64_t position = row % p.seq_len, head = row / p.seq_len % p.heads;
  const int64_t token = row / p.seq_len / p.heads * p.seq_len + position;
  const __nv_bfloat16* out = p.out + token * p.out_stride + head * p.head_size;
  const __nv_bfloat16* dout = p.dout + token * p.dout_stride + head * p.head_size;
  float sum = 0;
  for (int e = threadIdx.x % kWarp; e < p.head_size; e += kWarp) {
    sum = fmaf(__bfloat162float(out[e]), __bfloat162float(dout[e]), sum);
  }
  for (int lane = kWarp / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lane);
  if (threadIdx.x % kWarp == 0) p.delta[row] = sum;
}

// One cell of the score matrix: its probability and the gradient of its score, zero where the query
// does not see the key or is beyond the sequence.
__device__ void Cell(const BackwardParams& p, bool seen, float score, float dprobability, float lse,
                     float delta, float* probability, float* dscore) {
  *probability = seen ? exp2f((score * p.scale - lse) * kLog2E) : 0;
  *dscore = *probability * (dprobability - delta) * p.scale;
}

template <int kWidth>
__device__ void WritePlain(const HeadRows<__nv_bfloat16>& head, int first,
                           const typename Tile<kWidth>::Accumulator& sum) {
  float factor[Tile<kWidth>::kOwnRows];
  for (float& one : factor) one = 1;
  Write<kWidth>(head, first, sum, factor);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) AttentionFallbackQueryGradKernel(BackwardParams p) {
  using Shape = Tile<kWidth>;
  extern __shared__ __nv_bfloat162 shared[];
  __nv_bfloat162 *q = shared, *dout = q + Shape::kSize, *k = dout + Shape::kSize,
                 *v = k + Shape::kSize;
  float* dscore_tile = reinterpret_cast<float*>(v + Shape::kSize);
  const int head = blockIdx.y, sequence = blockIdx.z;
  const int first = (gridDim.x - 1 - blockIdx.x) * Shape::kRows;
  const auto head_of = [&](auto* matrix, int64_t stride, int index) {
    return HeadOf(matrix, stride, p.seq_len, p.head_size, sequence, index);
  };

  float lse[Shape::kOwnRows], delta[Shape::kOwnRows];
  for (int i = 0; i < Shape::kOwnRows; ++i) {
    const int row = first + OwnY() + i * kSide;
    const int64_t at = p.StatisticsOf(sequence, head) + row;
    lse[i] = row < p.seq_len ? p.lse[at] : 0;
    delta[i] = row < p.seq_len ? p.delta[at] : 0;
  }
  typename Shape::Accumulator dq;
  Clear<kWidth>(dq);
  Load<kWidth>(q, head_of(p.q, p.q_stride, head), first);
  Load<kWidth>(dout, head_of(p.dout, p.dout_stride, head), first);
  for (int key = 0; key <= first; key += Shape::kRows) {
    __syncthreads();
    Load<kWidth>(k, head_of(p.k, p.k_stride, head / p.group), key);
    Load<kWidth>(v, head_of(p.v, p.v_stride, head / p.group), key);
    __syncthreads();
    typename Shape::Scores scores, dprobabilities;
    DotRows<kWidth>(q, k, scores);
    DotRows<kWidth>(dout, v, dprobabilities);
    for (int i = 0; i < Shape::kOwnRows; ++i) {
      const int row = first + OwnY() + i * kSide;
      for (int j = 0; j < Shape::kOwnRows; ++j) {
        const bool seen = key + OwnX() + j * kSide <= row && row < p.seq_len;
        float probability;
        Cell(p, seen, scores[i][j], dprobabilities[i][j], lse[i], delta[i], &probability,
             &scores[i][j]);
      }
    }
    Store<kWidth>(dscore_tile, scores);
    __syncthreads();
    AddProduct<kWidth>(dscore_tile, k, dq);
  }
  WritePlain<kWidth>(head_of(p.dq, p.dq_stride, head), first, dq);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) AttentionFallbackKeyGradKernel(BackwardParams p) {
  using Shape = Tile<kWidth>;
  extern __shared__ __nv_bfloat162 shared[];
  __nv_bfloat162 *k = shared, *v = k + Shape::kSize, *q = v + Shape::kSize,
                 *dout = q + Shape::kSize;
  // Transposed: a row a key.
  float* probability_tile = reinterpret_cast<float*>(dout + Shape::kSize);
  float* dscore_tile = probability_tile + Shape::kRows * Shape::kScoreStride;
  const int kv_head = blockIdx.y, sequence = blockIdx.z;
  const int first = blockIdx.x * Shape::kRows;
  const auto head_of = [&](auto* matrix, int64_t stride, int index) {
    return HeadOf(matrix, stride, p.seq_len, p.head_size, sequence, index);
  };

  typename Shape::Accumulator dk, dv;
  Clear<kWidth>(dk);
  Clear<kWidth>(dv);
  Load<kWidth>(k, head_of(p.k, p.k_stride, kv_head), first);
  Load<kWidth>(v, head_of(p.v, p.v_stride, kv_head), first);
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) {
    for (int query = first; query < p.seq_len; query += Shape::kRows) {
      __syncthreads();
      Load<kWidth>(q, head_of(p.q, p.q_stride, head), query);
      Load<kWidth>(dout, head_of(p.dout, p.dout_stride, head), query);
      __syncthreads();
      typename Shape::Scores scores, dprobabilities;
      DotRows<kWidth>(k, q, scores);
      DotRows<kWidth>(v, dout, dprobabilities);
      for (int j = 0; j < Shape::kOwnRows; ++j) {
        const int row = query + OwnX() + j * kSide;
        const int64_t at = p.StatisticsOf(sequence, head) + row;
        const float lse = row < p.seq_len ? p.lse[at] : 0;
        const float delta = row < p.seq_len ? p.delta[at] : 0;
        for (int i = 0; i < Shape::kOwnRows; ++i) {
          const bool seen = first + OwnY() + i * kSide <= row && row < p.seq_len;
          Cell(p, seen, scores[i][j], dprobabilities[i][j], lse, delta, &scores[i][j],
               &dprobabilities[i][j]);
        }
      }
      Store<kWidth>(probability_tile, scores);
      Store<kWidth>(dscore_tile, dprobabilities);
      __syncthreads();
      AddProduct<kWidth>(probability_tile, dout, dv);
      AddProduct<kWidth>(dscore_tile, q, dk);
    }
  }
  WritePlain<kWidth>(head_of(p.dk, p.dk_stride, kv_head), first, dk);
  WritePlain<kWidth>(head_of(p.dv, p.dv_stride, kv_head), first, dv);
}

BackwardParams ParamsOf(const AttentionBackwardArgs& args, const AttentionShape& shape,
                        float* delta) {
  const auto read = [](const ConstTensorView& view) {
    return static_cast<const __nv_bfloat16*>(view.data());
  };
  const auto write = [](const TensorView& view) {
    return static_cast<__nv_bfloat16*>(view.data());
  };
  return {
      .q = read(args.q),
      .k = read(args.k),
      .v = read(args.v),
      .out = read(args.out),
      .dout = read(args.dout),
      .lse = args.lse.As<float>(),
      .delta = delta,
      .dq = write(args.dq),
      .dk = write(args.dk),
      .dv = write(args.dv),
      .q_stride = args.q.row_stride(),
      .k_stride = args.k.row_stride(),
      .v_stride = args.v.row_stride(),
      .out_stride = args.out.row_stride(),
      .dout_stride = args.dout.row_stride(),
      .dq_stride = args.dq.row_stride(),
      .dk_stride = args.dk.row_stride(),
      .dv_stride = args.dv.row_stride(),
      .sequences = static_cast<int>(shape.sequences),
      .seq_len = static_cast<int>(shape.seq_len),
      .heads = static_cast<int>(shape.heads),
      .group = static_cast<int>(shape.heads / shape.kv_heads),
      .head_size = static_cast<int>(shape.head_size),
      .scale = shape.scale(),
  };
}

}  // namespace

size_t AttentionFallbackWorkspaceBytes(const AttentionShape& shape) {
  return static_cast<size_t>(shape.tokens() * shape.heads) * sizeof(float);
}

void LaunchAttentionBackwardFallback(const AttentionBackwardArgs& args, const AttentionShape& shape,
                                     float* delta, cudaStream_t stream) {
  const BackwardParams params = ParamsOf(args, shape, delta);
  const auto blocks =
      static_cast<unsigned>(CeilDiv(shape.tokens() * shape.heads, kThreads / kWarp));
  AttentionFallbackDeltaKernel<<<blocks, kThreads, 0, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
  ForWidth(shape.head_size, [&](auto width) {
    using Shape = Tile<width()>;
    LaunchTiles<width()>(AttentionFallbackQueryGradKernel<width()>, params, shape, shape.heads,
                         4 * Shape::kBytes + Shape::kScoreBytes, stream);
    LaunchTiles<width()>(AttentionFallbackKeyGradKernel<width()>, params, shape, shape.kv_heads,
                         4 * Shape::kBytes + 2 * Shape::kScoreBytes, stream);
  });
}

}  // namespace filigree
