#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/sparse/layout.h"
#include "kernels/sparse/random_layout.h"
#include "kernels/sparse/two_four.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// [5, 7] in blocks of 2 x 3: a grid of 3 x 3 whose last row and column stick out. Block row 1 is
// empty, and so is block column 1.
SparseLayout EdgeLayout() {
  return SparseLayout::Blocked(5, 7, 2, 3, {0, 2, 2, 3}, {0, 2, 2}).value();
}

std::string MessageOf(const StatusOr<SparseLayout>& layout) {
  EXPECT_FALSE(layout.ok());
  return layout.status().message();
}

TEST(SparseLayoutTest, EmptyAndDense) {
  EXPECT_EQ(SparseLayout().stored_count(), 0);
  EXPECT_EQ(SparseLayout().sparsity(), 0.0);
  const SparseLayout dense = SparseLayout::Dense(3, 4);
  EXPECT_EQ(dense.stored_count(), 12);
  EXPECT_EQ(dense.nonzero_count(), 12);
  EXPECT_TRUE(dense.columns().empty());
  EXPECT_THAT(SparseLayout::Dense(2, 2).LogicalIndices(), ElementsAre(0, 1, 2, 3));
}

// What fills rows up takes slots and is nothing else: neither counted nor part of what is compared
// between machines.
TEST(SparseLayoutTest, DenseRowsMayLieAPitchApart) {
  const SparseLayout pitched = SparseLayout::Dense(2, 3, 4), plain = SparseLayout::Dense(2, 3);
  EXPECT_EQ(pitched.row_pitch(), 4);
  EXPECT_EQ(plain.row_pitch(), 3);
  EXPECT_EQ(pitched.stored_count(), 8);
  EXPECT_EQ(pitched.nonzero_count(), 6);
  EXPECT_EQ(pitched.sparsity(), 0.0);
  EXPECT_THAT(pitched.LogicalIndices(), ElementsAre(0, 1, 2, -1, 3, 4, 5, -1));
  EXPECT_EQ(pitched.fingerprint(), plain.fingerprint());
  EXPECT_FALSE(pitched == plain);
  EXPECT_TRUE(pitched == SparseLayout::Dense(2, 3, 4));
}

TEST(SparseLayoutTest, EdgeBlocksAreStoredWholeAndCountedClipped) {
  const SparseLayout layout = EdgeLayout();
  EXPECT_EQ(layout.grid_rows(), 3);
  EXPECT_EQ(layout.grid_cols(), 3);
  EXPECT_EQ(layout.block_count(), 3);
  EXPECT_EQ(layout.stored_count(), 18);
  EXPECT_EQ(layout.nonzero_count(), 6 + 2 + 1);
  EXPECT_DOUBLE_EQ(layout.sparsity(), 1 - 9.0 / 35);
  EXPECT_THAT(layout.LogicalIndices(), ElementsAre(0, 1, 2, 7, 8, 9,          // block (0, 0)
                                                   6, -1, -1, 13, -1, -1,     // block (0, 2)
                                                   34, -1, -1, -1, -1, -1));  // block (2, 2)
}

TEST(SparseLayoutTest, TransposeListsTheSameBlocksByColumn) {
  const SparseLayout::Transposed t = EdgeLayout().Transpose();
  EXPECT_THAT(t.column_offsets, ElementsAre(0, 1, 1, 3));
  EXPECT_THAT(t.rows, ElementsAre(0, 0, 2));
  EXPECT_THAT(t.slots, ElementsAre(0, 1, 2));
  const SparseLayout csr = SparseLayout::Unstructured(2, 3, {0, 2, 3}, {1, 2, 0}).value();
  EXPECT_THAT(csr.Transpose().column_offsets, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(csr.Transpose().rows, ElementsAre(1, 0, 0));
  EXPECT_THAT(csr.Transpose().slots, ElementsAre(2, 0, 1));
}

TEST(SparseLayoutTest, MessagesNameTheRowAndTheFault) {
  const auto csr = [](std::vector<int64_t> offsets, std::vector<int32_t> columns) {
    return MessageOf(SparseLayout::Unstructured(3, 4, std::move(offsets), std::move(columns)));
  };
  EXPECT_THAT(csr({0, 1}, {0}), HasSubstr("2 row offsets for 3 rows; 4 needed"));
  EXPECT_THAT(csr({0, 1, 1, 2}, {0}), HasSubstr("from 0 to the 1 columns"));
  EXPECT_THAT(csr({0, 2, 1, 2}, {0, 1}), HasSubstr("row 1: ends at 1 before it begins at 2"));
  EXPECT_THAT(csr({0, 0, 1, 1}, {4}), HasSubstr("row 1: column 4 is outside [0, 4)"));
  EXPECT_THAT(csr({0, 0, 0, 1}, {-1}), HasSubstr("row 2: column -1 is outside [0, 4)"));
  EXPECT_THAT(csr({0, 0, 0, 2}, {1, 1}), HasSubstr("row 2: column 1 after 1; columns must"));
  EXPECT_THAT(MessageOf(SparseLayout::Blocked(4, 4, 2, 2, {0, 0, 1}, {2})),
              HasSubstr("block row 1: column 2 is outside [0, 2)"));
  EXPECT_THAT(MessageOf(SparseLayout::Blocked(4, 4, 0, 2, {0}, {})), HasSubstr("block of 0 x 2"));
  EXPECT_THAT(MessageOf(SparseLayout::Unstructured(-1, 4, {0}, {})), HasSubstr("shape [-1, 4]"));
}

TEST(SparseLayoutTest, NMKeepsNOfEachGroup) {
  const SparseLayout layout = SparseLayout::NM(2, 8, 2, 4, {0, 3, 4, 5, 1, 2, 6, 7}).value();
  EXPECT_EQ(layout.n(), 2);
  EXPECT_EQ(layout.m(), 4);
  EXPECT_EQ(layout.nonzero_count(), 8);
  EXPECT_THAT(layout.row_offsets(), ElementsAre(0, 4, 8));
  EXPECT_THAT(MessageOf(SparseLayout::NM(1, 6, 2, 4, {0, 1, 2})), HasSubstr("m divides the row"));
  EXPECT_THAT(MessageOf(SparseLayout::NM(1, 8, 2, 4, {0, 1, 4})), HasSubstr("has 4"));
  EXPECT_THAT(MessageOf(SparseLayout::NM(2, 8, 2, 4, {0, 3, 4, 5, 1, 2, 3, 7})),
              HasSubstr("row 1: column 3 where one of [4, 8) belongs"));
}

TEST(SparseLayoutTest, FingerprintTellsEverythingApart) {
  std::set<uint64_t> seen;
  const auto add = [&](const StatusOr<SparseLayout>& layout) {
    EXPECT_TRUE(seen.insert(layout->fingerprint()).second) << layout->out() << "x" << layout->in();
  };
  add(SparseLayout::Dense(4, 4));
  add(SparseLayout::Dense(2, 8));
  add(SparseLayout::Unstructured(4, 4, {0, 1, 1, 1, 2}, {0, 1}));
  add(SparseLayout::Unstructured(4, 4, {0, 0, 1, 1, 2}, {0, 1}));
  add(SparseLayout::Unstructured(4, 4, {0, 1, 1, 1, 2}, {0, 2}));
  add(SparseLayout::Blocked(4, 4, 1, 1, {0, 1, 1, 1, 2}, {0, 1}));
  add(SparseLayout::Blocked(8, 4, 2, 1, {0, 1, 1, 1, 2}, {0, 1}));
  add(SparseLayout::Blocked(7, 4, 2, 1, {0, 1, 1, 1, 2}, {0, 1}));
  add(SparseLayout::NM(1, 4, 1, 2, {0, 2}));
  add(SparseLayout::NM(1, 4, 2, 4, {0, 2}));
  EXPECT_TRUE(EdgeLayout() == EdgeLayout());
  EXPECT_EQ(EdgeLayout().fingerprint(), EdgeLayout().fingerprint());
  EXPECT_FALSE(EdgeLayout() == SparseLayout::Dense(5, 7));
}

// The slot by logical cell, found the slow way.
std::vector<int64_t> RemapByMap(const SparseLayout& from, const SparseLayout& to) {
  std::map<int64_t, int64_t> slot_of;
  const auto from_cells = from.LogicalIndices();
  for (size_t slot = 0; slot < from_cells.size(); ++slot) slot_of[from_cells[slot]] = slot;
  slot_of.erase(-1);
  std::vector<int64_t> remap;
  for (int64_t cell : to.LogicalIndices()) {
    remap.push_back(slot_of.count(cell) ? slot_of[cell] : -1);
  }
  return remap;
}

TEST(IndexRemapTest, BetweenAllKinds) {
  const std::vector<SparseLayout> layouts = {
      SparseLayout::Dense(9, 8),
      SparseLayout::Dense(9, 8, 11),
      RandomUnstructured(9, 8, 0.4, 1, "a"),
      RandomUnstructured(9, 8, 0.7, 2, "b"),
      RandomUniformBlocks(9, 8, 2, 3, 0.5, 3, "c"),
      RandomBalancedBlocks(9, 8, 4, 4, 0.5, 4, "d"),
      RandomUnstructured(9, 8, 0.0, 5, "empty"),
      SparseLayout::NM(9, 8, 1, 4,
                       std::vector<int32_t>{0, 4, 1, 5, 2, 6, 3, 7, 0, 7, 1, 6, 2, 5, 3, 4, 0, 5})
          .value(),
  };
  for (const auto& from : layouts) {
    for (const auto& to : layouts) {
      EXPECT_EQ(IndexRemap(from, to), RemapByMap(from, to))
          << NameOf(from.kind()) << " to " << NameOf(to.kind());
    }
  }
  EXPECT_THAT(IndexRemap(SparseLayout::Dense(1, 2), SparseLayout::Dense(1, 2)), ElementsAre(0, 1));
}

TEST(RandomUnstructuredTest, ExactCountsAtEveryDensity) {
  for (double density : {0.0, 0.001, 0.25, 0.5, 0.999, 1.0}) {
    const SparseLayout layout = RandomUnstructured(67, 131, density, 11, "w");
    EXPECT_EQ(layout.stored_count(), std::llround(density * 67 * 131)) << density;
  }
  EXPECT_EQ(RandomUnstructured(1, 1, 0.4, 1, "w").stored_count(), 0);
  EXPECT_EQ(RandomUnstructured(3, 0, 0.5, 1, "w").stored_count(), 0);
}

TEST(RandomUnstructuredTest, IsAPureFunctionOfSeedAndName) {
  const auto draw = [](uint64_t seed, const char* name) {
    return RandomUnstructured(32, 32, 0.5, seed, name).fingerprint();
  };
  EXPECT_EQ(draw(1, "a"), draw(1, "a"));
  EXPECT_NE(draw(1, "a"), draw(2, "a"));
  EXPECT_NE(draw(1, "a"), draw(1, "b"));
}

// Row counts of a uniform draw are hypergeometric; five standard deviations over 500 rows.
TEST(RandomUnstructuredTest, RowsVaryAsUniformCellsDo) {
  const SparseLayout layout = RandomUnstructured(500, 400, 0.25, 7, "w");
  const double deviation = std::sqrt(400 * 0.25 * 0.75);
  double squares = 0;
  for (int64_t r = 0; r < 500; ++r) {
    const double excess = layout.row_offsets()[r + 1] - layout.row_offsets()[r] - 100.0;
    EXPECT_LT(std::abs(excess), 5 * deviation) << "row " << r;
    squares += excess * excess;
  }
  EXPECT_NEAR(squares / 500, deviation * deviation, 0.25 * deviation * deviation);
}

void ExpectBalanced(const SparseLayout& layout) {
  std::vector<int64_t> rows, columns(layout.grid_cols(), 0);
  for (int64_t r = 0; r < layout.grid_rows(); ++r) {
    rows.push_back(layout.row_offsets()[r + 1] - layout.row_offsets()[r]);
  }
  for (int32_t c : layout.columns()) ++columns[c];
  const auto [row_min, row_max] = std::minmax_element(rows.begin(), rows.end());
  const auto [column_min, column_max] = std::minmax_element(columns.begin(), columns.end());
  EXPECT_LE(*row_max - *row_min, 1);
  EXPECT_LE(*column_max - *column_min, 1);
}

TEST(RandomBalancedBlocksTest, ExactCountAndBalanceForAnyGrid) {
  const std::vector<std::pair<int64_t, int64_t>> grids = {{1, 1},  {1, 13},  {13, 1}, {2, 9},
                                                          {7, 11}, {16, 16}, {40, 12}};
  for (const auto& [rows, cols] : grids) {
    for (double density : {0.0, 0.03, 0.25, 0.37, 0.5, 0.9, 1.0}) {
      // One row and one column less than whole blocks.
      const auto layout = RandomBalancedBlocks(rows * 4 - 1, cols * 3 - 1, 4, 3, density, 5, "w");
      SCOPED_TRACE(::testing::Message() << rows << " x " << cols << " at " << density);
      EXPECT_EQ(layout.block_count(), std::llround(density * rows * cols));
      ExpectBalanced(layout);
    }
  }
}

// Over many seeds each cell must be drawn as often as any other: four standard deviations, and
// neighbouring cells no more often together than distant ones (dealing in turn would band them).
TEST(RandomBalancedBlocksTest, PositionsAreUniform) {
  constexpr int kRows = 8, kCols = 12, kDraws = 2000;
  std::vector<int> drawn(kRows * kCols, 0);
  int diagonal_pairs = 0;
  for (int seed = 0; seed < kDraws; ++seed) {
    const SparseLayout layout = RandomBalancedBlocks(kRows, kCols, 1, 1, 0.25, seed, "w");
    std::vector<bool> live(kRows * kCols, false);
    for (int64_t index : layout.LogicalIndices()) live[index] = true;
    for (int cell = 0; cell < kRows * kCols; ++cell) drawn[cell] += live[cell];
    for (int r = 0; r + 1 < kRows; ++r) {
      for (int c = 0; c + 1 < kCols; ++c) {
        diagonal_pairs += live[r * kCols + c] && live[(r + 1) * kCols + c + 1];
      }
    }
  }
  const double mean = kDraws * 0.25, deviation = std::sqrt(mean * 0.75);
  for (int count : drawn) EXPECT_NEAR(count, mean, 4.5 * deviation);
  // Of the 24 live cells, 3 a row and 2 a column, 24 * (24 - 3 - 2 + 1) ordered pairs share neither
  // row nor column, among 96 * 77 such places.
  const double pairs = kDraws * (kRows - 1) * (kCols - 1) * (24.0 * 20.0) / (96.0 * 77.0);
  EXPECT_NEAR(diagonal_pairs, pairs, 0.02 * pairs);
}

// n of every m in each row, and in each column of every block where it is transposable.
TEST(RandomNMTest, KeepsNOfEveryM) {
  for (const auto& [n, m] : {std::pair{1, 2}, {2, 4}, {3, 4}, {2, 5}, {4, 8}, {1, 64}}) {
    for (const bool transposable : {false, true}) {
      SCOPED_TRACE(::testing::Message() << n << ":" << m << " transposable " << transposable);
      const int64_t out = 3 * m, in = 2 * m;
      // SparseLayout::NM has checked the rows.
      const SparseLayout layout = RandomNM(out, in, n, m, transposable, 5, "w");
      EXPECT_EQ(layout.stored_count(), out * 2 * n);
      if (!transposable) continue;
      std::vector<int> counts(3 * in, 0);  // of each column in each band of m rows
      for (int64_t cell : layout.LogicalIndices()) ++counts[cell / in / m * in + cell % in];
      EXPECT_EQ(counts, std::vector<int>(3 * in, n));
    }
  }
  EXPECT_FALSE(RandomNM(8, 8, 2, 4, false, 5, "a") == RandomNM(8, 8, 2, 4, false, 5, "b"));
}

// Every choice is as likely as any other: 6 for a group of 2:4, 90 for a transposable block, within
// five standard deviations. Switches mix rather than draw, so that blocks may be a little more
// uneven.
TEST(RandomNMTest, ChoicesAreUniform) {
  constexpr int64_t kWidth = 4 * 256;
  for (const bool transposable : {false, true}) {
    const int64_t rows = transposable ? 4 : 1;
    std::map<std::vector<int64_t>, int> seen;
    const SparseLayout layout = RandomNM(kWidth, kWidth, 2, 4, transposable, 3, "w");
    std::vector<std::vector<int64_t>> groups(kWidth / rows * (kWidth / 4));
    for (int64_t cell : layout.LogicalIndices()) {
      const int64_t row = cell / kWidth, column = cell % kWidth;
      groups[row / rows * (kWidth / 4) + column / 4].push_back(row % rows * 4 + column % 4);
    }
    for (const auto& group : groups) ++seen[group];
    const size_t choices = transposable ? 90 : 6;
    ASSERT_EQ(seen.size(), choices);
    const double mean = static_cast<double>(groups.size()) / static_cast<double>(choices);
    for (const auto& [choice, count] : seen) {
      EXPECT_NEAR(count, mean, 5 * std::sqrt(mean) + (transposable ? 0.02 * mean : 0));
    }
  }
}

// Among any four cells that begin at a multiple of four, counted one by one.
TEST(TwoFourTest, IsWhatEveryFourCellsHold) {
  for (const auto& [n, m] :
       {std::pair{1, 2}, {1, 3}, {2, 4}, {3, 4}, {1, 4}, {2, 6}, {2, 8}, {4, 8}, {1, 64}}) {
    for (const bool transposable : {false, true}) {
      SCOPED_TRACE(::testing::Message() << n << ":" << m << " transposable " << transposable);
      const int64_t out = 4 * m, in = 8 * m;
      const SparseLayout layout = RandomNM(out, in, n, m, transposable, 5, "w");
      std::vector<int> of_row(out * in / 4, 0), of_column(out * in / 4, 0);
      for (int64_t cell : layout.LogicalIndices()) {
        const int64_t row = cell / in, column = cell % in;
        ++of_row[row * (in / 4) + column / 4];
        ++of_column[row / 4 * in + column];
      }
      const bool rows = *std::ranges::max_element(of_row) <= 2;
      const bool columns = *std::ranges::max_element(of_column) <= 2;
      const TwoFourKind kind = TwoFourOf(layout);
      EXPECT_EQ(kind != TwoFourKind::kNone, rows);
      EXPECT_EQ(kind == TwoFourKind::kRowsAndColumns, rows && columns);
    }
  }
  EXPECT_EQ(TwoFourOf(RandomNM(8, 8, 2, 4, true, 5, "w")), TwoFourKind::kRowsAndColumns);
  EXPECT_EQ(TwoFourOf(RandomNM(64, 64, 2, 4, false, 5, "w")), TwoFourKind::kRows);
  EXPECT_EQ(TwoFourOf(SparseLayout::Dense(8, 8)), TwoFourKind::kNone);
}

TEST(RandomUniformBlocksTest, ExactCount) {
  const SparseLayout layout = RandomUniformBlocks(100, 70, 16, 8, 0.3, 9, "w");
  EXPECT_EQ(layout.block_count(), std::llround(0.3 * 7 * 9));
  EXPECT_EQ(layout.block_out(), 16);
  EXPECT_EQ(layout.block_in(), 8);
}

// Masks must never change between versions: old checkpoints and published runs depend on them.
TEST(RandomLayoutTest, Golden) {
  const auto first = [](const SparseLayout& layout) {
    return std::vector<int32_t>(layout.columns().begin(), layout.columns().begin() + 8);
  };
  const SparseLayout cells = RandomUnstructured(64, 96, 0.25, 42, "layers.0.wq");
  EXPECT_THAT(first(cells), ElementsAre(1, 2, 6, 10, 12, 17, 18, 19));
  EXPECT_EQ(cells.fingerprint(), 14401264723092504617u);
  const SparseLayout blocks = RandomBalancedBlocks(512, 320, 32, 32, 0.25, 42, "layers.0.wq");
  EXPECT_THAT(first(blocks), ElementsAre(5, 8, 2, 4, 0, 2, 9, 0));
  EXPECT_EQ(blocks.fingerprint(), 11515833691020739951u);
  const SparseLayout uniform = RandomUniformBlocks(512, 320, 32, 32, 0.25, 42, "layers.0.wq");
  EXPECT_THAT(first(uniform), ElementsAre(1, 4, 8, 1, 0, 1, 9, 0));
  EXPECT_EQ(uniform.fingerprint(), 12309850048013930410u);
}

}  // namespace
}  // namespace filigree
