#include "kernels/sparse/unit_layout.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {

int64_t UnitCount(const SparseLayout& layout) { return layout.grid_rows() * layout.grid_cols(); }

int64_t StoredUnitCount(const SparseLayout& layout) { return layout.block_count(); }

SparseLayout WithUnits(const SparseLayout& like, std::span<const uint8_t> marks) {
  const int64_t rows = like.grid_rows(), cols = like.grid_cols();
  CHECK_EQ(static_cast<int64_t>(marks.size()), rows * cols);
  std::vector<int64_t> offsets(rows + 1, 0);
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    const auto begin = marks.begin() + row * cols;
    offsets[row + 1] = std::count(begin, begin + cols, 1);
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  std::vector<int32_t> columns(offsets.back());
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* next = columns.data() + offsets[row];
    for (int64_t column = 0; column < cols; ++column) {
      if (marks[row * cols + column] == 1) *next++ = static_cast<int32_t>(column);
    }
  }
  return WithRows(like, std::move(offsets), std::move(columns));
}

SparseLayout WithRows(const SparseLayout& like, std::vector<int64_t> row_offsets,
                      std::vector<int32_t> columns) {
  if (like.kind() == LayoutKind::kUnstructured) {
    return SparseLayout::Unstructured(like.out(), like.in(), std::move(row_offsets),
                                      std::move(columns))
        .value();
  }
  CHECK(like.kind() == LayoutKind::kBlocked) << NameOf(like.kind());
  return SparseLayout::Blocked(like.out(), like.in(), like.block_out(), like.block_in(),
                               std::move(row_offsets), std::move(columns))
      .value();
}

int64_t CommonCells(const SparseLayout& a, const SparseLayout& b) {
  CHECK(a.kind() == b.kind() && a.out() == b.out() && a.in() == b.in() &&
        a.block_out() == b.block_out() && a.block_in() == b.block_in());
  const int64_t height = a.block_out(), width = a.block_in();
  int64_t cells = 0;
#pragma omp parallel for reduction(+ : cells)
  for (int64_t row = 0; row < a.grid_rows(); ++row) {
    const int64_t a_end = a.row_offsets()[row + 1], b_end = b.row_offsets()[row + 1];
    int64_t i = a.row_offsets()[row], j = b.row_offsets()[row], of_row = 0;
    while (i < a_end && j < b_end) {
      const int64_t left = a.columns()[i], right = b.columns()[j];
      if (left == right) of_row += std::min(width, a.in() - left * width);
      i += left <= right;
      j += right <= left;
    }
    cells += of_row * std::min(height, a.out() - row * height);
  }
  return cells;
}

}  // namespace filigree
