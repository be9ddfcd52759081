// AddColumns: what pruning's second-order update adds to the columns that stay.
//
// AddColumnsKernel. Grid: (tiles of 128 columns of `rest`, rows); a thread a cell, which goes through
//   the terms in order. Terms are added in F64 without contraction: the CPU's bits. Bytes: 8 a cell,
//   and for each term 8 that all rows share.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"

namespace filigree {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxGridRows = 65535;

__global__ void __launch_bounds__(kThreads)
    AddColumnsKernel(Rows<float> weight, int64_t rows, const int32_t* gone, int terms,
                     const int32_t* rest, int64_t count, const double* factors) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float* cells = weight.row(row);
    float cell = cells[rest[i]];
    for (int k = 0; k < terms; ++k) {
      const double term = __dmul_rn(static_cast<double>(cells[gone[k]]), factors[k * count + i]);
      cell = static_cast<float>(__dadd_rn(static_cast<double>(cell), term));
    }
    cells[rest[i]] = cell;
  }
}

}  // namespace

void CudaBackend::AddColumns(const AddColumnsArgs& args, Stream& stream) {
  const int64_t terms = args.gone.size(), count = args.rest.size(), rows = args.weight.rows();
  if (terms == 0 || count == 0 || rows == 0) return;
  const dim3 grid(static_cast<unsigned>(CeilDiv(count, int64_t{kThreads})),
                  static_cast<unsigned>(std::min(rows, kMaxGridRows)));
  AddColumnsKernel<<<grid, kThreads, 0, NativeStream(stream)>>>(
      AsRows<float>(args.weight, rows, args.weight.cols(), "weight"), rows,
      AsElements<int32_t>(args.gone, terms, "gone"), static_cast<int>(terms),
      AsElements<int32_t>(args.rest, count, "rest"), count,
      AsElements<double>(args.factors, terms * count, "factors"));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree
