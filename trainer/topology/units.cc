#include "trainer/topology/units.h"

#include <cmath>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

int64_t UnitOf(const SparseLayout& layout, int64_t cell) {
  const int64_t row = cell / layout.in(), column = cell % layout.in();
  return row / layout.block_out() * layout.grid_cols() + column / layout.block_in();
}

}  // namespace

int64_t UnitCount(const SparseLayout& layout) { return layout.grid_rows() * layout.grid_cols(); }

int64_t StoredUnits(const SparseLayout& layout) { return layout.block_count(); }

std::vector<uint8_t> LiveUnits(const SparseLayout& layout) {
  std::vector<uint8_t> live(UnitCount(layout), 0);
  const auto offsets = layout.row_offsets();
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      live[row * layout.grid_cols() + layout.columns()[p]] = 1;
    }
  }
  return live;
}

SparseLayout WithUnits(const SparseLayout& like, const std::vector<uint8_t>& live) {
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  const int64_t rows = like.grid_rows(), cols = like.grid_cols();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < cols; ++column) {
      if (live[row * cols + column]) columns.push_back(static_cast<int32_t>(column));
    }
    offsets.push_back(static_cast<int64_t>(columns.size()));
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
  const std::vector<int64_t> cells = layout.LogicalIndices();
  std::vector<float> scores(UnitCount(layout), 0.0f);
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] < 0) continue;  // the padding of an edge block
    scores[UnitOf(layout, cells[slot])] +=
        criterion.score(inputs, static_cast<int64_t>(slot), cells[slot]);
  }
  return scores;
}

std::vector<float> GradientScores(const SparseLayout& layout, std::span<const float> dense_grads) {
  std::vector<float> scores(UnitCount(layout), 0.0f);
  for (size_t cell = 0; cell < dense_grads.size(); ++cell) {
    scores[UnitOf(layout, static_cast<int64_t>(cell))] += std::abs(dense_grads[cell]);
  }
  return scores;
}

}  // namespace filigree
