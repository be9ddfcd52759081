#include "trainer/topology/units.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {

int64_t UnitCount(const SparseLayout& layout) { return layout.grid_rows() * layout.grid_cols(); }

int64_t StoredUnitCount(const SparseLayout& layout) { return layout.block_count(); }

SparseLayout WithUnits(const SparseLayout& like, const std::vector<uint8_t>& marks) {
  const int64_t rows = like.grid_rows(), cols = like.grid_cols();
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
  if (like.kind() == LayoutKind::kUnstructured) {
    return SparseLayout::Unstructured(like.out(), like.in(), std::move(offsets), std::move(columns))
        .value();
  }
  CHECK(like.kind() == LayoutKind::kBlocked) << NameOf(like.kind());
  return SparseLayout::Blocked(like.out(), like.in(), like.block_out(), like.block_in(),
                               std::move(offsets), std::move(columns))
      .value();
}

}  // namespace filigree
