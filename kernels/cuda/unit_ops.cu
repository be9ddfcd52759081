// MarkStored, ScoreUnits: what a topology rule sees of a weight.
//
// MarkKernel. Grid: one CTA a row of the grid; marks are cleared beforehand. Bytes: 2 or 4 a stored
//   unit, 1 a unit.
// ScoreKernel. Grid: (rows of the grid, workers along a row); a cell is a thread's, a block a warp's,
//   whose order of summing depends on the block's shape alone. Bytes: 4 a cell and factor.
#include <algorithm>
#include <type_traits>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/layout_index.cuh"
#include "kernels/cuda/reduce.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

template <typename Column>
__global__ void __launch_bounds__(kThreads)
    MarkKernel(Index<Column> index, uint8_t* marks, int64_t grid_cols) {
  const int64_t row = blockIdx.x;
  const uint32_t begin = index.row_offsets[row], end = index.row_offsets[row + 1];
  for (uint32_t p = begin + threadIdx.x; p < end; p += kThreads) {
    marks[row * grid_cols + index.columns[p]] = 1;
  }
}

// A cell's score is their product, as far as they are there.
struct Factors {
  const float* values;  // [stored_count]
  Rows<const float> dense;
  const float* columns;  // [in]
  bool absolute;
};

// The part of a unit's score that lane `lane` of kLanes sums up.
template <int kLanes, typename Column>
__device__ __forceinline__ float PartialScore(const Index<Column>& index, const Factors& factors,
                                              int64_t grid_row, int64_t grid_column, int64_t entry,
                                              int lane) {
  const int64_t top = grid_row * index.height, left = grid_column * index.width;
  const int rows = static_cast<int>(min(int64_t{index.height}, index.out - top));
  const int cols = static_cast<int>(min(int64_t{index.width}, index.in - left));
  const int64_t first = entry * index.height * index.width;
  float sum = 0;
  for (int i = lane; i < rows * cols; i += kLanes) {
    const int r = i / cols, c = i % cols;
    float cell = 1;
    if (factors.values != nullptr) cell = factors.values[first + int64_t{r} * index.width + c];
    if (factors.dense.data != nullptr) cell *= factors.dense.row(top + r)[left + c];
    if (factors.columns != nullptr) cell *= factors.columns[left + c];
    sum += factors.absolute ? fabsf(cell) : cell;
  }
  return sum;
}

template <int kLanes, typename Column>
__global__ void __launch_bounds__(kThreads)
    ScoreKernel(Index<Column> index, Factors factors, bool every_unit, int64_t grid_cols,
                float* scores) {
  constexpr int kWorkers = kThreads / kLanes;  // of a CTA
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x % kLanes;
  const int64_t begin = every_unit ? 0 : index.row_offsets[row];
  const int64_t end = every_unit ? grid_cols : index.row_offsets[row + 1];
  const int64_t worker = int64_t{blockIdx.y} * kWorkers + threadIdx.x / kLanes;
  for (int64_t entry = begin + worker; entry < end; entry += int64_t{gridDim.y} * kWorkers) {
    const int64_t column = every_unit ? entry : int64_t{index.columns[entry]};
    float score = PartialScore<kLanes>(index, factors, row, column, entry, lane);
    if constexpr (kLanes > 1) score = WarpSum(score);
    if (lane == 0) scores[row * grid_cols + column] = score;
  }
}

// The layout, of a kind whose units rules may choose.
const SparseLayout& UnitLayout(const PreparedLayout* weight) {
  const SparseLayout& layout = weight->layout();
  CHECK(layout.kind() == LayoutKind::kUnstructured || layout.kind() == LayoutKind::kBlocked)
      << NameOf(layout.kind());
  return layout;
}

}  // namespace

void CudaBackend::MarkStored(const MarkStoredArgs& args, Stream& stream) {
  const SparseLayout& layout = UnitLayout(args.weight);
  const int64_t cols = layout.grid_cols();
  uint8_t* marks = AsElements<uint8_t>(args.marks, layout.grid_rows() * cols, "marks");
  device_.ZeroAsync(args.marks, stream);
  if (layout.block_count() == 0) return;
  WithIndex(Prepared(args.weight), [&](auto index) {
    MarkKernel<<<static_cast<unsigned>(layout.grid_rows()), kThreads, 0, NativeStream(stream)>>>(
        index, marks, cols);
  });
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::ScoreUnits(const ScoreUnitsArgs& args, Stream& stream) {
  const SparseLayout& layout = UnitLayout(args.weight);
  CHECK(args.values.empty() || !args.every_unit) << "units that are not stored have no values";
  const int64_t cols = layout.grid_cols();
  float* scores = AsElements<float>(args.scores, layout.grid_rows() * cols, "scores");
  if (!args.every_unit && layout.block_count() == 0) return;
  Factors factors = {.values = nullptr, .dense = {}, .columns = nullptr, .absolute = args.absolute};
  if (!args.values.empty()) {
    factors.values = AsElements<float>(args.values, layout.stored_count(), "values");
  }
  if (!args.dense.empty()) {
    factors.dense = AsRows<float>(args.dense, layout.out(), layout.in(), "dense");
  }
  if (!args.column_factors.empty()) {
    factors.columns = AsElements<float>(args.column_factors, layout.in(), "column_factors");
  }
  const bool cells = layout.block_out() == 1 && layout.block_in() == 1;
  const auto rows = static_cast<unsigned>(layout.grid_rows());
  const auto workers = static_cast<unsigned>(CeilDiv(cols, int64_t{kThreads / kWarpThreads}));
  WithIndex(Prepared(args.weight), [&](auto index) {
    const auto launch = [&](auto kernel, unsigned along_row) {
      kernel<<<dim3(rows, along_row), kThreads, 0, NativeStream(stream)>>>(
          index, factors, args.every_unit, cols, scores);
    };
    using Column = std::remove_cvref_t<decltype(*index.columns)>;
    cells ? launch(ScoreKernel<1, Column>, 1)
          : launch(ScoreKernel<kWarpThreads, Column>, std::min(workers, 65535u));
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree
