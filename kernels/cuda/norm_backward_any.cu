// AnyNormBackwardKernel (dx) and GainPartialsKernel (dgain, dbias): the norms' backward pass at any
// width and alignment; formulas as in norm_backward.cu.
// AnyNormBackwardKernel. Grid: one block of 256 threads a row; two passes over the row. Bytes: 8 an
//   element from memory, x and dy once more from cache.
// GainPartialsKernel. Grid: (ceil(cols / 256), partial rows); a thread sums one column over a range
//   of rows. Bytes: 4 an element, 8 a row, 4 or 8 a column of each partial row.
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/norm_backward.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

template <bool kLayer>
__global__ void __launch_bounds__(kThreads) AnyNormBackwardKernel(NormBackwardParams p) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const float rstd = p.rstd[row], mean = kLayer ? p.mean[row] : 0.0f;
  const bf16 *x = p.x.row(row), *dy = p.dy.row(row);
  bf16* dx = p.dx.row(row);
  float sum_dxhat = 0, sum_dxhat_xhat = 0;
  for (int col = threadIdx.x; col < p.cols; col += kThreads) {
    const float xhat = (__bfloat162float(x[col]) - mean) * rstd;
    const float dxhat = __bfloat162float(dy[col]) * __bfloat162float(p.gain[col]);
    sum_dxhat += dxhat;
    sum_dxhat_xhat += dxhat * xhat;
  }
  const float a = BlockSum(sum_dxhat_xhat, shared) / p.divisor;
  const float b = kLayer ? BlockSum(sum_dxhat, shared) / p.divisor : 0.0f;
  for (int col = threadIdx.x; col < p.cols; col += kThreads) {
    const float xhat = (__bfloat162float(x[col]) - mean) * rstd;
    const float dxhat = __bfloat162float(dy[col]) * __bfloat162float(p.gain[col]);
    dx[col] = __float2bfloat16_rn(__bfloat162float(dx[col]) + rstd * (dxhat - b - xhat * a));
  }
}

template <bool kLayer>
__global__ void __launch_bounds__(kThreads)
    GainPartialsKernel(NormBackwardParams p, int64_t range_rows) {
  const int col = blockIdx.x * kThreads + threadIdx.x;
  if (col >= p.cols) return;
  const int64_t begin = blockIdx.y * range_rows, end = min(p.rows, begin + range_rows);
  float dgain = 0, dbias = 0;
#pragma unroll 4
  for (int64_t row = begin; row < end; ++row) {
    const float mean = kLayer ? p.mean[row] : 0.0f;
    const float dy = __bfloat162float(p.dy.row(row)[col]);
    dgain += dy * (__bfloat162float(p.x.row(row)[col]) - mean) * p.rstd[row];
    dbias += dy;
  }
  float* out = p.partials + int64_t{blockIdx.y} * p.cols * (1 + kLayer);
  out[col] = dgain;
  if constexpr (kLayer) out[p.cols + col] = dbias;
}

template <bool kLayer>
void Launch(const NormBackwardParams& p, int partial_rows, cudaStream_t stream) {
  AnyNormBackwardKernel<kLayer><<<p.rows, kThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
  const dim3 grid(CeilDiv(p.cols, kThreads), partial_rows);
  GainPartialsKernel<kLayer><<<grid, kThreads, 0, stream>>>(p, CeilDiv(p.rows, partial_rows));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void LaunchAnyNormBackward(const NormBackwardParams& p, int partial_rows, cudaStream_t stream) {
  if (p.mean != nullptr) {
    Launch<true>(p, partial_rows, stream);
  } else {
    Launch<false>(p, partial_rows, stream);
  }
}

}  // namespace filigree
