// NormBackwardKernel: with xhat = (x - mean) * rstd and dxhat = dy * gain,
//   dx += rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)), mean(dxhat) in LayerNorm alone,
// and partial sums of dgain (dy * xhat), dbias (dy) and, if asked, of dx as it is stored, which
// SumColumnPartials finishes.
//
// Grid: as many blocks as partial rows; each takes rows of x a grid apart. Block: the threads of
// one row (8 columns each), or several such groups side by side where rows are narrow. A thread
// keeps its columns' sums in registers over all its rows, those of dx in shared memory of its own.
// Bytes: 8 an element (x, dy, dx twice), 8 a row, and 4 to 12 a column of each partial row.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/norm_backward.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kMaxThreads = kMaxNormBackwardCols / 8;
constexpr int kNarrowThreads = 256;  // at least that many in a block, if rows are narrow

// Hides where a pack's bits came from, so that its values are converted again after a barrier
// instead of being kept over it in twice the registers.
__device__ __forceinline__ void Forget(Bf16Pack<8>& pack) {
  asm volatile("" : "+r"(pack.raw.x), "+r"(pack.raw.y), "+r"(pack.raw.z), "+r"(pack.raw.w));
}

// Writes the block's sums of 8 columns, those of its groups added in order in shared memory.
__device__ __forceinline__ void WritePartials(const float (&sums)[8], int group, int groups,
                                              int col, int cols, float* shared, float* out) {
  for (int turn = 0; turn < groups; ++turn) {
    if (group == turn && col < cols) {
      float total[8] = {};
      if (turn > 0) LoadValues(shared + col, total);
#pragma unroll
      for (int k = 0; k < 8; ++k) total[k] += sums[k];
      StoreValues((turn + 1 == groups ? out : shared) + col, total);
    }
    __syncthreads();
  }
}

// A thread's sums of 8 columns in shared memory; its halves lie apart, so that a warp's accesses do
// not collide.
struct SharedSums {
  float4* low;
  float4* high;

  __device__ __forceinline__ void Clear() const { *low = *high = make_float4(0, 0, 0, 0); }
  __device__ __forceinline__ void Add(const float (&values)[8]) const {
    const float4 a = *low, b = *high;
    *low = make_float4(a.x + values[0], a.y + values[1], a.z + values[2], a.w + values[3]);
    *high = make_float4(b.x + values[4], b.y + values[5], b.z + values[6], b.w + values[7]);
  }
  __device__ __forceinline__ void Get(float (&values)[8]) const {
    const float4 a = *low, b = *high;
    values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
    values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
  }
};

// 64 registers: two blocks of 512 threads, or four of 256, on a multiprocessor.
template <bool kLayer, bool kSumsDx>
__global__ void __launch_bounds__(kMaxThreads, 1)
    NormBackwardKernel(NormBackwardParams p, int row_threads) {
  // [2 * threads] float4 where dx is summed, then [cols] F32 where a block has several groups.
  extern __shared__ float4 memory[];
  __shared__ float2 shared[kMaxWarps];
  const int groups = blockDim.x / row_threads, group = threadIdx.x / row_threads;
  const int col = 8 * (threadIdx.x % row_threads);
  const int row_warps = row_threads / kWarpThreads, first_warp = group * row_warps;
  const float inverse_divisor = 1.0f / p.divisor;
  const int64_t step = int64_t{gridDim.x} * groups;
  float dgain[8] = {}, dbias[8] = {};
  const SharedSums dx_sums = {memory + threadIdx.x, memory + blockDim.x + threadIdx.x};
  if constexpr (kSumsDx) dx_sums.Clear();
  // All groups of a block go round equally often, since they meet at barriers.
  for (int64_t first = int64_t{blockIdx.x} * groups; first < p.rows; first += step) {
    const int64_t row = first + group;
    const bool live = row < p.rows && col < p.cols;
    // Zeros beyond the data, which add nothing to any sum.
    Bf16Pack<8> x_pack = {}, dy_pack = {}, gain_pack = {}, dx_pack = {};
    if (live) {
      x_pack = Load<8>(p.x.row(row) + col);
      dy_pack = Load<8>(p.dy.row(row) + col);
      dx_pack = Load<8>(p.dx.row(row) + col);
      gain_pack = Load<8>(p.gain + col);
    }
    const float rstd = live ? p.rstd[row] : 0.0f;
    const float mean = kLayer && live ? p.mean[row] : 0.0f;
    float2 sums = make_float2(0, 0);  // of dxhat (LayerNorm alone), of dxhat * xhat
    float x[8], dy[8], g[8];
    Unpack(x_pack, x);
    Unpack(dy_pack, dy);
    Unpack(gain_pack, g);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float xhat = (x[k] - mean) * rstd, dxhat = dy[k] * g[k];
      dgain[k] += dy[k] * xhat;
      sums.y += dxhat * xhat;
      if constexpr (kLayer) dbias[k] += dy[k], sums.x += dxhat;
    }
    Forget(x_pack), Forget(dy_pack), Forget(dx_pack);
    const float2 totals = SumOverWarps(sums, first_warp, row_warps, shared);
    if (!live) continue;
    const float b = totals.x * inverse_divisor, a = totals.y * inverse_divisor;
    float total[8];
    Unpack(x_pack, x);
    Unpack(dy_pack, dy);
    LoadValues(p.gain + col, g);  // again, from cache
    Unpack(dx_pack, total);
#pragma unroll
    for (int k = 0; k < 8; ++k) total[k] += rstd * (dy[k] * g[k] - b - (x[k] - mean) * rstd * a);
    const Bf16Pack<8> rounded = Rounded(total);
    Store<8>(p.dx.row(row) + col, rounded);
    if constexpr (kSumsDx) {
      Unpack(rounded, total);
      dx_sums.Add(total);
    }
  }
  float* out = p.partials + int64_t{blockIdx.x} * p.cols * (1 + kLayer + kSumsDx);
  float* buffer = reinterpret_cast<float*>(memory + (kSumsDx ? 2 * blockDim.x : 0));
  WritePartials(dgain, group, groups, col, p.cols, buffer, out);
  if constexpr (kLayer) {
    WritePartials(dbias, group, groups, col, p.cols, buffer, out + p.cols);
  }
  if constexpr (kSumsDx) {
    float sums[8];
    dx_sums.Get(sums);
    WritePartials(sums, group, groups, col, p.cols, buffer, out + (1 + kLayer) * p.cols);
  }
}

template <bool kLayer, bool kSumsDx>
void Launch(const NormBackwardParams& p, int partial_rows, cudaStream_t stream) {
  const int row_threads = static_cast<int>(AlignUp(CeilDiv(p.cols, 8), kWarpThreads));
  const int groups = std::max(1, kNarrowThreads / row_threads);
  const int threads = groups * row_threads;
  const size_t shared_bytes =
      (kSumsDx ? 2 * threads * sizeof(float4) : 0) + (groups > 1 ? p.cols * sizeof(float) : 0);
  NormBackwardKernel<kLayer, kSumsDx>
      <<<partial_rows, threads, shared_bytes, stream>>>(p, row_threads);
}

}  // namespace

void LaunchNormBackward(const NormBackwardParams& p, int partial_rows, cudaStream_t stream) {
  CHECK_LE(p.cols, kMaxNormBackwardCols);
  if (p.mean != nullptr) {
    p.sums_dx ? Launch<true, true>(p, partial_rows, stream)
              : Launch<true, false>(p, partial_rows, stream);
  } else {
    p.sums_dx ? Launch<false, true>(p, partial_rows, stream)
              : Launch<false, false>(p, partial_rows, stream);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree
