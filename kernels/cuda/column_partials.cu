// AddPartialsKernel: out[c] += the partial sums of column c.
// Grid: one block for 32 columns; block: 32 columns x 16 ranges of partial rows. A thread sums its
// range, then the first sixteenth adds the ranges up in order. Bytes: 4 a partial, 4 to 8 a column.
#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/cuda/column_partials.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kCols = 32, kRanges = 16;

template <typename Out>
__global__ void __launch_bounds__(kCols* kRanges)
    AddPartialsKernel(const float* partials, int count, int64_t stride, int cols, Out* out) {
  __shared__ float sums[kRanges][kCols];
  const int col = blockIdx.x * kCols + threadIdx.x, range = threadIdx.y;
  const int length = (count + kRanges - 1) / kRanges;
  const int begin = range * length, end = min(count, begin + length);
  float sum = 0;
  if (col < cols) {
#pragma unroll 8
    for (int i = begin; i < end; ++i) sum += partials[i * stride + col];
  }
  sums[range][threadIdx.x] = sum;
  __syncthreads();
  if (range != 0 || col >= cols) return;
#pragma unroll
  for (int i = 1; i < kRanges; ++i) sum += sums[i][threadIdx.x];
  float value[1];
  LoadValues(out + col, value);
  value[0] += sum;
  StoreValues(out + col, value);
}

}  // namespace

void AddColumnPartials(const float* partials, int64_t count, int64_t stride, TensorView out,
                       cudaStream_t stream) {
  CHECK(out.contiguous());
  if (out.size() == 0 || count == 0) return;
  const int rows = static_cast<int>(count), cols = static_cast<int>(out.size());
  const dim3 block(kCols, kRanges);
  const auto blocks = static_cast<unsigned>(CeilDiv(cols, kCols));
  if (out.dtype() == DType::kF32) {
    AddPartialsKernel<<<blocks, block, 0, stream>>>(partials, rows, stride, cols, out.As<float>());
  } else {
    CHECK(out.dtype() == DType::kBF16) << "gradients in " << NameOf(out.dtype());
    AddPartialsKernel<<<blocks, block, 0, stream>>>(partials, rows, stride, cols,
                                                    static_cast<bf16*>(out.data()));
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree
