#include "trainer/topology/units.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// Calls fn(row, column, cell) for the cells inside the weight of the unit in grid row `grid_row`,
// grid column `grid_column`, row by row: `row` and `column` are counted within the unit.
template <typename Fn>
void ForEachCell(const SparseLayout& layout, int64_t grid_row, int64_t grid_column, const Fn& fn) {
  const int64_t top = grid_row * layout.block_out(), left = grid_column * layout.block_in();
  const int64_t rows = std::min<int64_t>(layout.block_out(), layout.out() - top);
  const int64_t cols = std::min<int64_t>(layout.block_in(), layout.in() - left);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t begin = (top + r) * layout.in() + left;
    for (int64_t c = 0; c < cols; ++c) fn(r, c, begin + c);
  }
}

}  // namespace

int64_t UnitCount(const SparseLayout& layout) { return layout.grid_rows() * layout.grid_cols(); }

int64_t StoredUnits(const SparseLayout& layout) { return layout.block_count(); }

std::vector<uint8_t> LiveUnits(const SparseLayout& layout) {
  std::vector<uint8_t> live(UnitCount(layout), 0);
  const auto offsets = layout.row_offsets();
#pragma omp parallel for
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      live[row * layout.grid_cols() + layout.columns()[p]] = 1;
    }
  }
  return live;
}

SparseLayout WithUnits(const SparseLayout& like, const std::vector<uint8_t>& live) {
  const int64_t rows = like.grid_rows(), cols = like.grid_cols();
  std::vector<int64_t> offsets(rows + 1, 0);
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    const auto begin = live.begin() + row * cols;
    offsets[row + 1] = std::accumulate(begin, begin + cols, int64_t{0});
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  std::vector<int32_t> columns(offsets.back());
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* next = columns.data() + offsets[row];
    for (int64_t column = 0; column < cols; ++column) {
      if (live[row * cols + column]) *next++ = static_cast<int32_t>(column);
    }
  }
  if (like.kind() == LayoutKind::kUnstructured) {
    return SparseLayout::Unstructured(like.out(), like.in(), std::move(offsets), std::move(columns))
        .value();
  }
  CHECK(like.kind() == LayoutKind::kBlocked) << NameOf(like.kind());
  return SparseLayout::Blocked(like.out(), like.in(), like.block_out(), like.block_in(),
                               std::move(offsets), std::move(columns))
      .value();
}

std::vector<float> StoredScores(const Criterion& criterion, const ScoreInputs& inputs) {
  const SparseLayout& layout = inputs.parameter->layout;
  const int64_t width = layout.block_in(), area = layout.block_out() * width;
  std::vector<float> scores(UnitCount(layout), 0.0f);
  const auto offsets = layout.row_offsets();
#pragma omp parallel for
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      const int64_t column = layout.columns()[p];
      float& score = scores[row * layout.grid_cols() + column];
      ForEachCell(layout, row, column, [&](int64_t r, int64_t c, int64_t cell) {
        score += criterion.score(inputs, p * area + r * width + c, cell);
      });
    }
  }
  return scores;
}

std::vector<float> GradientScores(const SparseLayout& layout, std::span<const float> dense_grads) {
  std::vector<float> scores(UnitCount(layout), 0.0f);
  if (layout.kind() == LayoutKind::kUnstructured) {
    const auto cells = static_cast<int64_t>(dense_grads.size());
#pragma omp parallel for
    for (int64_t cell = 0; cell < cells; ++cell) scores[cell] = std::abs(dense_grads[cell]);
    return scores;
  }
#pragma omp parallel for
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t column = 0; column < layout.grid_cols(); ++column) {
      float& score = scores[row * layout.grid_cols() + column];
      ForEachCell(layout, row, column,
                  [&](int64_t, int64_t, int64_t cell) { score += std::abs(dense_grads[cell]); });
    }
  }
  return scores;
}

}  // namespace filigree
