// SumPartialsKernel: out[c] (+)= the partial sums of column c.
// Grid: (one block for 32 columns, vectors); block: 32 columns x 16 ranges of partial rows. A
// thread sums its range, then the first sixteenth adds the ranges up in order. Bytes: 4 a partial,
// 4 to 8 a column.
#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/cuda/column_partials.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kCols = 32, kRanges = 16;

template <typename Out>
struct Totals {
  Out* out[kMaxColumnTotals];
  bool accumulate[kMaxColumnTotals];
};

template <typename Out>
__global__ void __launch_bounds__(kCols* kRanges)
    SumPartialsKernel(const float* partials, int count, int cols, Totals<Out> totals) {
  __shared__ float sums[kRanges][kCols];
  const int col = blockIdx.x * kCols + threadIdx.x, range = threadIdx.y;
  const int64_t stride = int64_t{gridDim.y} * cols;
  const int length = (count + kRanges - 1) / kRanges;
  const int begin = range * length, end = min(count, begin + length);
  float sum = 0;
  if (col < cols) {
    const float* column = partials + int64_t{blockIdx.y} * cols + col;
#pragma unroll 8
    for (int i = begin; i < end; ++i) sum += column[i * stride];
  }
  sums[range][threadIdx.x] = sum;
  __syncthreads();
  if (range != 0 || col >= cols) return;
#pragma unroll
  for (int i = 1; i < kRanges; ++i) sum += sums[i][threadIdx.x];
  Out* out = totals.out[blockIdx.y] + col;
  float value[1] = {0};
  if (totals.accumulate[blockIdx.y]) LoadValues(out, value);
  value[0] += sum;
  StoreValues(out, value);
}

template <typename Out>
void Launch(const float* partials, int64_t count, std::span<const ColumnTotal> totals,
            cudaStream_t stream) {
  const int64_t cols = totals.front().out.size();
  Totals<Out> to = {};
  for (size_t i = 0; i < totals.size(); ++i) {
    const TensorView& out = totals[i].out;
    CHECK(out.contiguous() && out.size() == cols && out.dtype() == totals.front().out.dtype());
    to.out[i] = static_cast<Out*>(out.data());
    to.accumulate[i] = totals[i].accumulate;
  }
  const dim3 grid(static_cast<unsigned>(CeilDiv(cols, kCols)),
                  static_cast<unsigned>(totals.size()));
  SumPartialsKernel<<<grid, dim3(kCols, kRanges), 0, stream>>>(partials, static_cast<int>(count),
                                                               static_cast<int>(cols), to);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void SumColumnPartials(const float* partials, int64_t count, std::span<const ColumnTotal> totals,
                       cudaStream_t stream) {
  CHECK(!totals.empty() && totals.size() <= kMaxColumnTotals) << totals.size();
  const TensorView& first = totals.front().out;
  if (first.size() == 0) return;
  if (first.dtype() == DType::kF32) return Launch<float>(partials, count, totals, stream);
  CHECK(first.dtype() == DType::kBF16) << "gradients in " << NameOf(first.dtype());
  Launch<bf16>(partials, count, totals, stream);
}

}  // namespace filigree
