// LayoutOfMarks: a layout's indices from the marks of its units, made on the device; the host gets
// a copy of them (2 bytes a stored unit where columns are short) in place of a byte for every unit.
//
// CountMarksKernel, WriteColumnsKernel: a warp a row of the grid. Bytes: 1 a unit each, and the
//   columns.
// SumRowsKernel: one CTA goes over the rows.
#include <cub/block/block_scan.cuh>
#include <limits>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/prepared_layout.h"
#include "kernels/sparse/unit_layout.h"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSumThreads = 1024;

// counts[row]: units of the row that are marked 1.
__global__ void __launch_bounds__(kThreads)
    CountMarksKernel(const uint8_t* marks, int64_t rows, int64_t cols, uint32_t* counts) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  int count = 0;
  for (int64_t column = threadIdx.x % 32; column < cols; column += 32) {
    count += marks[row * cols + column] == 1;
  }
  count = __reduce_add_sync(0xffffffffu, count);
  if (threadIdx.x % 32 == 0) counts[row] = static_cast<uint32_t>(count);
}

// offsets[0] = 0; offsets[1 + row] goes from counts to their sums up to there.
__global__ void __launch_bounds__(kSumThreads) SumRowsKernel(uint32_t* offsets, int64_t rows) {
  using Scan = cub::BlockScan<uint32_t, kSumThreads>;
  __shared__ typename Scan::TempStorage storage;
  uint32_t before = 0;
  for (int64_t first = 0; first < rows; first += kSumThreads) {
    const int64_t row = first + threadIdx.x;
    uint32_t sum = row < rows ? offsets[1 + row] : 0, all = 0;
    Scan(storage).InclusiveSum(sum, sum, all);
    if (row < rows) offsets[1 + row] = before + sum;
    before += all;
    __syncthreads();  // before the storage is used again
  }
  if (threadIdx.x == 0) offsets[0] = 0;
}

template <typename Column>
__global__ void __launch_bounds__(kThreads)
    WriteColumnsKernel(const uint8_t* marks, int64_t rows, int64_t cols, const uint32_t* offsets,
                       Column* columns) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  Column* next = columns + offsets[row];
  for (int64_t first = 0; first < cols; first += 32) {
    const int64_t column = first + lane;
    const bool marked = column < cols && marks[row * cols + column] == 1;
    const uint32_t ballot = __ballot_sync(0xffffffffu, marked);
    if (marked) next[__popc(ballot & ((1u << lane) - 1))] = static_cast<Column>(column);
    next += __popc(ballot);
  }
}

template <typename Column>
std::vector<int32_t> Widened(const std::byte* columns, int64_t count) {
  const auto* begin = reinterpret_cast<const Column*>(columns);
  return std::vector<int32_t>(begin, begin + count);
}

}  // namespace

std::unique_ptr<PreparedLayout> CudaBackend::LayoutOfMarks(const SparseLayout& like,
                                                           ConstTensorView marks, Stream& stream) {
  const int64_t rows = like.grid_rows(), cols = like.grid_cols();
  const uint8_t* from = AsElements<uint8_t>(marks, rows * cols, "marks");
  CHECK_LE(rows * cols, int64_t{std::numeric_limits<uint32_t>::max()});
  if (rows == 0) return PrepareLayout(like);
  const cudaStream_t native = NativeStream(stream);
  const auto ctas = static_cast<unsigned>(CeilDiv(rows, int64_t{kWarps}));
  const size_t offset_bytes = static_cast<size_t>(rows + 1) * sizeof(uint32_t);
  auto* offsets = reinterpret_cast<uint32_t*>(Workspace(offset_bytes));
  CountMarksKernel<<<ctas, kThreads, 0, native>>>(from, rows, cols, offsets + 1);
  SumRowsKernel<<<1, kSumThreads, 0, native>>>(offsets, rows);
  CUDA_CHECK(cudaGetLastError());
  std::byte* landing = Landing(offset_bytes);
  CUDA_CHECK(
      cudaMemcpyAsync(landing, offsets, offset_bytes, cudaMemcpyDeviceToHost, native));
  stream.Synchronize();
  const auto* host_offsets = reinterpret_cast<const uint32_t*>(landing);
  std::vector<int64_t> row_offsets(host_offsets, host_offsets + rows + 1);
  const int64_t count = row_offsets.back();
  const IndexPlaces places = PlacesOf(rows, cols, count);
  DeviceBuffer buffer = device_.Allocate(places.bytes, "layouts");
  auto* begin = static_cast<std::byte*>(buffer.data());
  std::byte* columns = begin + places.columns;
  CUDA_CHECK(cudaMemcpyAsync(begin, offsets, offset_bytes, cudaMemcpyDeviceToDevice, native));
  const auto write = [&](auto column) {
    using Column = decltype(column);
    WriteColumnsKernel<<<ctas, kThreads, 0, native>>>(from, rows, cols, offsets,
                                                      reinterpret_cast<Column*>(columns));
  };
  places.short_columns ? write(uint16_t{}) : write(uint32_t{});
  CUDA_CHECK(cudaGetLastError());
  const size_t column_bytes =
      static_cast<size_t>(count) * (places.short_columns ? sizeof(uint16_t) : sizeof(uint32_t));
  landing = Landing(column_bytes);
  CUDA_CHECK(cudaMemcpyAsync(landing, columns, column_bytes, cudaMemcpyDeviceToHost, native));
  stream.Synchronize();
  std::vector<int32_t> host_columns = places.short_columns ? Widened<uint16_t>(landing, count)
                                                           : Widened<uint32_t>(landing, count);
  const SparseLayout layout = WithRows(like, std::move(row_offsets), std::move(host_columns));
  return std::make_unique<CudaPreparedLayout>(indices_.Of(layout, std::move(buffer)), device_);
}

}  // namespace filigree
