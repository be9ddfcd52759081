// Marks and scores of a weight's units, and the layout that marks stand for.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/sparse/unit_layout.h"

namespace filigree {
namespace {

// One score; cells are added row by row.
class UnitScorer {
 public:
  explicit UnitScorer(const ScoreUnitsArgs& args)
      : layout_(args.weight->layout()),
        area_(int64_t{layout_.block_out()} * layout_.block_in()),
        absolute_(args.absolute) {
    if (!args.values.empty()) {
      values_ = AsVector<float>(args.values, layout_.stored_count(), "values");
    }
    if (!args.dense.empty()) {
      dense_ = AsMatrix<float>(args.dense, layout_.out(), layout_.in(), "dense");
    }
    if (!args.column_factors.empty()) {
      factors_ = AsVector<float>(args.column_factors, layout_.in(), "column_factors");
    }
  }

  // Of the unit in a row and column of the grid, stored `entry`-th.
  float operator()(int64_t grid_row, int64_t grid_column, int64_t entry) const {
    const int64_t top = grid_row * layout_.block_out(), left = grid_column * layout_.block_in();
    const int64_t rows = std::min<int64_t>(layout_.block_out(), layout_.out() - top);
    const int64_t cols = std::min<int64_t>(layout_.block_in(), layout_.in() - left);
    float score = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const float* values = values_ ? values_ + entry * area_ + r * layout_.block_in() : nullptr;
      const float* dense = dense_.data ? dense_.row(top + r) + left : nullptr;
      for (int64_t c = 0; c < cols; ++c) {
        float cell = values ? values[c] : 1.0f;
        if (dense) cell *= dense[c];
        if (factors_) cell *= factors_[left + c];
        score += absolute_ ? std::abs(cell) : cell;
      }
    }
    return score;
  }

 private:
  const SparseLayout& layout_;
  const int64_t area_;
  const bool absolute_;
  const float* values_ = nullptr;
  Matrix<const float> dense_;
  const float* factors_ = nullptr;
};

}  // namespace

void CpuBackend::MarkStored(const MarkStoredArgs& args, Stream&) {
  const SparseLayout& layout = args.weight->layout();
  uint8_t* marks = AsVector<uint8_t>(args.marks, UnitCount(layout), "marks");
  const auto offsets = layout.row_offsets();
  const int64_t cols = layout.grid_cols();
  ParallelFor(layout.grid_rows(), RowGrain(cols), [&](int64_t begin, int64_t end) {
    std::fill(marks + begin * cols, marks + end * cols, uint8_t{0});
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
        marks[row * cols + layout.columns()[p]] = 1;
      }
    }
  });
}

void CpuBackend::ScoreUnits(const ScoreUnitsArgs& args, Stream&) {
  const SparseLayout& layout = args.weight->layout();
  CHECK(args.values.empty() || !args.every_unit) << "units that are not stored have no values";
  float* scores = AsVector<float>(args.scores, UnitCount(layout), "scores");
  const UnitScorer score(args);
  const auto offsets = layout.row_offsets();
  const int64_t cols = layout.grid_cols();
  const int64_t grain = RowGrain(cols * layout.block_out() * layout.block_in());
  ParallelFor(layout.grid_rows(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* of_row = scores + row * cols;
      if (args.every_unit) {
        for (int64_t column = 0; column < cols; ++column) of_row[column] = score(row, column, 0);
        continue;
      }
      for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
        const int64_t column = layout.columns()[p];
        of_row[column] = score(row, column, p);
      }
    }
  });
}

std::unique_ptr<PreparedLayout> CpuBackend::LayoutOfMarks(const SparseLayout& like,
                                                          ConstTensorView marks, Stream&) {
  const int64_t units = UnitCount(like);
  const uint8_t* data = AsVector<uint8_t>(marks, units, "marks");
  return PrepareLayout(WithUnits(like, {data, static_cast<size_t>(units)}));
}

}  // namespace filigree
