// ColumnSum: out[n] (+)= sum over rows of in[:, n], BF16 in, F32 sums, in an order that depends on
// the shape alone.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/column_partials.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kLanes = 32;    // threads along the columns
constexpr int kRowLanes = 8;  // threads along the rows
// CTAs that keep a large GPU busy; a constant, so that the sums are the same on every card.
constexpr int64_t kTargetCtas = 512;
constexpr int64_t kMinRows = 4 * kRowLanes;  // of one CTA

// partials[chunk, n] = sum over the rows of a chunk. Grid: (column tiles of kLanes * kVec, chunks);
// block: (kLanes, kRowLanes). Bytes: 2 an element, read once.
template <int kVec>
__global__ void __launch_bounds__(kLanes* kRowLanes)
    ColumnSumKernel(Rows<const bf16> in, int64_t rows, int64_t cols, int64_t chunk_rows,
                    float* partials) {
  const int64_t col = (int64_t{blockIdx.x} * kLanes + threadIdx.x) * kVec;
  const int64_t begin = blockIdx.y * chunk_rows;
  const int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  float sum[kVec] = {};
  if (col < cols) {
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += kRowLanes) {
      float values[kVec];
      LoadValues(in.row(row) + col, values);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += values[i];
    }
  }
  __shared__ float shared[kRowLanes][kVec][kLanes];
#pragma unroll
  for (int i = 0; i < kVec; ++i) shared[threadIdx.y][i][threadIdx.x] = sum[i];
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    float total = 0;
#pragma unroll
    for (int r = 0; r < kRowLanes; ++r) total += shared[r][i][threadIdx.x];
    partials[blockIdx.y * cols + col + i] = total;
  }
}

}  // namespace

void CudaBackend::ColumnSum(const ColumnSumArgs& args, Stream& stream) {
  const int64_t rows = args.in.rows(), cols = args.in.cols();
  const auto in = AsRows<bf16>(args.in, rows, cols, "in");
  CHECK_EQ(args.out.size(), cols);
  if (rows == 0 && !args.accumulate) device_.ZeroAsync(args.out, stream);
  if (rows == 0 || cols == 0) return;
  const bool vectors = TakesVectors(args.in);
  const int64_t tiles = CeilDiv(cols, kLanes * (vectors ? 8 : 1));
  const int64_t wanted =
      std::clamp<int64_t>(CeilDiv(kTargetCtas, tiles), 1, CeilDiv(rows, kMinRows));
  const int64_t chunk_rows = CeilDiv(rows, wanted);
  const int64_t chunks = CeilDiv(rows, chunk_rows);
  auto* partials = reinterpret_cast<float*>(Workspace(chunks * cols * sizeof(float)));
  const cudaStream_t native = NativeStream(stream);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks));
  const dim3 block(kLanes, kRowLanes);
  if (vectors) {
    ColumnSumKernel<8><<<grid, block, 0, native>>>(in, rows, cols, chunk_rows, partials);
  } else {
    ColumnSumKernel<1><<<grid, block, 0, native>>>(in, rows, cols, chunk_rows, partials);
  }
  CUDA_CHECK(cudaGetLastError());
  const ColumnTotal total[] = {{args.out, args.accumulate}};
  SumColumnPartials(partials, chunks, total, native);
}

}  // namespace filigree
