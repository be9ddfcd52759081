// UnitSums, ScaleUnits: what structured pruning reads and writes of a piece of a row-major matrix.
//
// RowSumsKernel. Grid: one block of 256 threads a unit; a unit's rows are consecutive elements, of
//   which a thread takes every 256th. Bytes: 8 an element of the piece.
// ColumnPartialsKernel. Grid: (ceil(columns / 256), ranges of rows); a thread sums one column over a
//   range. Bytes: 8 an element, 12 a column of each range. AddUnitPartialsKernel: a block of 64
//   threads a unit adds the partial sums of its columns and of all ranges.
// ScaleKernel: a thread an element, strided. Bytes: 4 or 8 an element.
// All orders of summing depend on the shape alone.
#include <algorithm>
#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kAddThreads = 64;
constexpr int kMaxRanges = 64;  // of rows
constexpr int kMaxBlocks = 4096;
constexpr int kSums = 3;

struct Piece {
  const float *values, *grads;  // grads may be null
  int64_t first, count, columns;
};

// What one cell adds to its unit's sums.
__device__ __forceinline__ void AddCell(const Piece& p, int64_t i, float (&sums)[kSums]) {
  const float w = p.values[i];
  const float product = p.grads != nullptr ? p.grads[i] * w : 0.0f;
  sums[0] += product;
  sums[1] += product * product;
  sums[2] += w * w;
}

__global__ void __launch_bounds__(kThreads)
    RowSumsKernel(Piece p, int64_t unit_cells, int64_t first_unit, double* out) {
  __shared__ float shared[kMaxWarps];
  const int64_t unit = first_unit + blockIdx.x;
  const int64_t begin = max(int64_t{0}, unit * unit_cells - p.first);
  const int64_t end = min(p.count, (unit + 1) * unit_cells - p.first);
  float sums[kSums] = {};
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) AddCell(p, i, sums);
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    const float total = BlockSum(sums[k], shared);
    if (threadIdx.x == 0) out[kSums * unit + k] += total;
  }
}

__global__ void __launch_bounds__(kThreads)
    ColumnPartialsKernel(Piece p, int64_t first_row, int64_t range_rows, int64_t end_row,
                         float* partials) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.columns) return;
  const int64_t begin = first_row + blockIdx.y * range_rows;
  const int64_t end = min(end_row, begin + range_rows);
  float sums[kSums] = {};
#pragma unroll 4
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row * p.columns + column - p.first;
    if (i >= 0 && i < p.count) AddCell(p, i, sums);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    partials[(blockIdx.y * int64_t{kSums} + k) * p.columns + column] = sums[k];
  }
}

__global__ void __launch_bounds__(kAddThreads)
    AddUnitPartialsKernel(const float* partials, int ranges, int64_t columns, int64_t extent,
                          double* out) {
  __shared__ double shared[kSums][kAddThreads / kWarpThreads];
  const int64_t unit = blockIdx.x, begin = unit * extent;
  const auto width = static_cast<int>(min(columns, begin + extent) - begin);
  double sums[kSums] = {};
  for (int i = threadIdx.x; i < ranges * width; i += kAddThreads) {
    const int range = i / width;
    const float* cell = partials + range * int64_t{kSums} * columns + begin + i % width;
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] += cell[k * columns];
  }
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
      sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], offset);
    }
    if (lane == 0) shared[k][warp] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x >= kSums) return;
  double sum = 0;
  for (const double of_warp : shared[threadIdx.x]) sum += of_warp;
  out[kSums * unit + threadIdx.x] += sum;
}

// Factors of units along one axis.
struct Factors {
  const float* data;  // null: all 1
  int64_t count, extent;
  __device__ __forceinline__ float of(int64_t cell) const {
    const int64_t unit = cell / extent;
    return data != nullptr && unit < count ? data[unit] : 1.0f;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ScaleKernel(T* values, int64_t count, int64_t first, int64_t columns, Factors rows,
                Factors cols) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t cell = first + i, row = cell / columns;
    const float factor = rows.of(row) * cols.of(cell - row * columns);
    if (factor == 1.0f) continue;
    float value[1];
    LoadValues(values + i, value);
    value[0] = factor == 0.0f ? 0.0f : value[0] * factor;
    StoreValues(values + i, value);
  }
}

Factors FactorsOf(ConstTensorView view, int64_t extent) {
  if (view.empty()) return {nullptr, 0, extent};
  return {AsElements<float>(view, view.size(), "factors"), view.size(), extent};
}

template <typename T>
void LaunchScale(const ScaleUnitsArgs& args, cudaStream_t stream) {
  const int64_t count = args.values.size();
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(kMaxBlocks, CeilDiv(count, kThreads)));
  ScaleKernel<T><<<blocks, kThreads, 0, stream>>>(
      AsElements<T>(args.values, count, "values"), count, args.units.first, args.units.columns,
      FactorsOf(args.row_factors, args.units.row_extent),
      FactorsOf(args.column_factors, args.units.column_extent));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void CudaBackend::UnitSums(const UnitSumsArgs& args, Stream& stream) {
  const CellUnits& units = args.units;
  Piece p = {};
  p.count = args.values.size();
  p.values = AsElements<float>(args.values, p.count, "values");
  if (!args.grads.empty()) p.grads = AsElements<float>(args.grads, p.count, "grads");
  p.first = units.first;
  p.columns = units.columns;
  if (p.count == 0) return;
  const int64_t first_row = p.first / p.columns, end_row = CeilDiv(p.first + p.count, p.columns);
  if (!args.row_sums.empty()) {
    const int64_t first = first_row / units.row_extent;
    const int64_t end =
        std::min(args.row_sums.size() / kSums, CeilDiv(end_row, units.row_extent));
    if (end > first) {
      RowSumsKernel<<<static_cast<unsigned>(end - first), kThreads, 0, NativeStream(stream)>>>(
          p, units.row_extent * p.columns, first,
          AsElements<double>(args.row_sums, args.row_sums.size(), "row_sums"));
      CUDA_CHECK(cudaGetLastError());
    }
  }
  if (args.column_sums.empty()) return;
  const int64_t range_rows = CeilDiv(end_row - first_row, kMaxRanges);
  const auto ranges = static_cast<int>(CeilDiv(end_row - first_row, range_rows));
  auto* partials =
      reinterpret_cast<float*>(Workspace(sizeof(float) * kSums * ranges * p.columns));
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.columns, kThreads)),
                  static_cast<unsigned>(ranges));
  ColumnPartialsKernel<<<grid, kThreads, 0, NativeStream(stream)>>>(p, first_row, range_rows,
                                                                    end_row, partials);
  CUDA_CHECK(cudaGetLastError());
  const int64_t count = args.column_sums.size() / kSums;
  AddUnitPartialsKernel<<<static_cast<unsigned>(count), kAddThreads, 0, NativeStream(stream)>>>(
      partials, ranges, p.columns, units.column_extent,
      AsElements<double>(args.column_sums, args.column_sums.size(), "column_sums"));
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::ScaleUnits(const ScaleUnitsArgs& args, Stream& stream) {
  if (args.values.size() == 0) return;
  if (args.values.dtype() == DType::kF32) {
    LaunchScale<float>(args, NativeStream(stream));
  } else {
    LaunchScale<bf16>(args, NativeStream(stream));
  }
}

}  // namespace filigree
