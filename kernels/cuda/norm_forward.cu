// NormKernel, AnyNormKernel: y = norm(x), RMSNorm or (kLayer) LayerNorm.
//
// NormKernel keeps a row in registers. Grid: one block a row, or a block for four rows of at most
// 1024 columns, one a warp. Block: 128 threads, 256 or 512 where rows are wider than 4096 or 8192.
// AnyNormKernel takes any width and alignment. Grid: one block of 256 threads a row; it passes over
// the row once more for each statistic, from cache.
// Bytes: 4 an element (x, y); 4 or 8 a row of statistics.
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

struct NormParams {
  Rows<const bf16> x;
  Rows<bf16> y;
  const bf16 *gain, *bias;  // bias of LayerNorm
  float *mean, *rstd;       // mean of LayerNorm
  int64_t rows;
  int cols;
  float divisor;  // of the row's sums
  float epsilon;
};

template <bool kLayer, int kVec>
__device__ __forceinline__ void NormalizePack(const NormParams& p, int64_t row, int col, float mean,
                                              float rstd, float (&values)[kVec]) {
  float gain[kVec];
  LoadValues(p.gain + col, gain);
#pragma unroll
  for (int k = 0; k < kVec; ++k) values[k] = (values[k] - mean) * rstd * gain[k];
  if constexpr (kLayer) {
    float bias[kVec];
    LoadValues(p.bias + col, bias);
#pragma unroll
    for (int k = 0; k < kVec; ++k) values[k] += bias[k];
  }
  Store<kVec>(p.y.row(row) + col, Rounded(values));
}

template <int kWarps>
__device__ __forceinline__ float SumOverRow(float value, float (&shared)[kMaxWarps]) {
  if constexpr (kWarps == 1) {
    return WarpSum(value);
  } else {
    return BlockSum(value, shared);
  }
}

// A row is kWarps warps wide, and a thread has kPacks packs of it, 8 * 32 * kWarps columns apart.
template <bool kLayer, int kWarps, int kPacks>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps) NormKernel(NormParams p) {
  constexpr int kRowThreads = 32 * kWarps;
  __shared__ float shared[kMaxWarps];
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / kRowThreads) + threadIdx.x / kRowThreads;
  // Whole warps leave, and only where a row is a warp: no barrier is missed.
  if (row >= p.rows) return;
  const int thread = threadIdx.x % kRowThreads;
  Bf16Pack<8> x[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int col = 8 * (thread + i * kRowThreads);
    if (col >= p.cols) continue;
    x[i] = Load<8>(p.x.row(row) + col);
  }
  float values[kPacks][8] = {};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int col = 8 * (thread + i * kRowThreads);
    if (col >= p.cols) continue;
    Unpack(x[i], values[i]);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += values[i][k];
  }
  float mean = 0;
  if constexpr (kLayer) mean = SumOverRow<kWarps>(sum, shared) / p.divisor;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    if (8 * (thread + i * kRowThreads) >= p.cols) continue;
#pragma unroll
    for (int k = 0; k < 8; ++k) squares += (values[i][k] - mean) * (values[i][k] - mean);
  }
  const float rstd = rsqrtf(SumOverRow<kWarps>(squares, shared) / p.divisor + p.epsilon);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int col = 8 * (thread + i * kRowThreads);
    if (col < p.cols) NormalizePack<kLayer>(p, row, col, mean, rstd, values[i]);
  }
  if (thread != 0) return;
  p.rstd[row] = rstd;
  if constexpr (kLayer) p.mean[row] = mean;
}

constexpr int kAnyThreads = 256;

template <bool kLayer>
__global__ void __launch_bounds__(kAnyThreads) AnyNormKernel(NormParams p) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const bf16* input = p.x.row(row);
  float sum = 0;
  for (int col = threadIdx.x; col < p.cols; col += kAnyThreads) {
    sum += __bfloat162float(input[col]);
  }
  float mean = 0;
  if constexpr (kLayer) mean = BlockSum(sum, shared) / p.divisor;
  float squares = 0;
  for (int col = threadIdx.x; col < p.cols; col += kAnyThreads) {
    const float value = __bfloat162float(input[col]) - mean;
    squares += value * value;
  }
  const float rstd = rsqrtf(BlockSum(squares, shared) / p.divisor + p.epsilon);
  for (int col = threadIdx.x; col < p.cols; col += kAnyThreads) {
    float value[1] = {__bfloat162float(input[col])};
    NormalizePack<kLayer>(p, row, col, mean, rstd, value);
  }
  if (threadIdx.x != 0) return;
  p.rstd[row] = rstd;
  if constexpr (kLayer) p.mean[row] = mean;
}

template <bool kLayer, int kWarps, int kPacks>
void LaunchNorm(const NormParams& p, cudaStream_t stream) {
  constexpr int kThreads = kWarps == 1 ? 128 : 32 * kWarps, kBlockRows = kThreads / (32 * kWarps);
  NormKernel<kLayer, kWarps, kPacks><<<CeilDiv(p.rows, kBlockRows), kThreads, 0, stream>>>(p);
}

template <bool kLayer>
void Norm(const NormParams& p, bool vectors, cudaStream_t stream) {
  if (p.rows == 0 || p.cols == 0) return;
  if (!vectors || p.cols > 16384) {
    AnyNormKernel<kLayer><<<p.rows, kAnyThreads, 0, stream>>>(p);
  } else if (p.cols <= 1024) {
    LaunchNorm<kLayer, 1, 4>(p, stream);
  } else if (p.cols <= 2048) {
    LaunchNorm<kLayer, 4, 2>(p, stream);
  } else if (p.cols <= 4096) {
    LaunchNorm<kLayer, 4, 4>(p, stream);
  } else if (p.cols <= 8192) {
    LaunchNorm<kLayer, 8, 4>(p, stream);
  } else {
    LaunchNorm<kLayer, 16, 4>(p, stream);
  }
  CUDA_CHECK(cudaGetLastError());
}

// What RmsNormArgs and LayerNormArgs share.
template <typename Args>
NormParams ParamsOf(const Args& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  NormParams p = {};
  p.x = AsRows<bf16>(args.x, rows, cols, "x");
  p.y = AsRows<bf16>(args.y, rows, cols, "y");
  p.gain = AsElements<bf16>(args.gain, cols, "gain");
  p.rstd = AsElements<float>(args.rstd, rows, "rstd");
  p.rows = rows;
  p.cols = static_cast<int>(cols);
  p.divisor = static_cast<float>(cols);
  p.epsilon = static_cast<float>(args.epsilon);
  return p;
}

}  // namespace

void CudaBackend::RmsNorm(const RmsNormArgs& args, Stream& stream) {
  NormParams p = ParamsOf(args);
  if (args.divisor > 0) p.divisor = static_cast<float>(args.divisor);
  Norm<false>(p, TakeVectors(args.x, args.y, args.gain), NativeStream(stream));
}

void CudaBackend::LayerNorm(const LayerNormArgs& args, Stream& stream) {
  NormParams p = ParamsOf(args);
  p.bias = AsElements<bf16>(args.bias, p.cols, "bias");
  p.mean = AsElements<float>(args.mean, p.rows, "mean");
  Norm<true>(p, TakeVectors(args.x, args.y, args.gain, args.bias), NativeStream(stream));
}

}  // namespace filigree
