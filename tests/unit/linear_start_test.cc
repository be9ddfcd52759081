// What parameterisations with factors start from: layouts and initial values as published.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/unit/linear_testing.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/lost_start.h"

namespace filigree {
namespace {

TEST_F(LinearTest, UnstructuredPartsAreDrawnAsPublished) {
  SparsitySpec spec;
  spec.parameterisation = "sparse_plus_low_rank";
  spec.sparsity = 0.97;
  spec.rank = 128;
  const auto draw = [&](const char* name, int64_t out, int64_t in) {
    const LinearSpec linear = {.name = name, .out = out, .in = in};
    return kSparsePlusLowRankParameterisation.draw_layout(linear, spec, 7);
  };
  // int(0.03 * cells), also where rounding would say one more.
  EXPECT_EQ(draw("a", 512, 1376).stored_count(), 21135);
  EXPECT_EQ(draw("a", 768, 768).stored_count(), 17694);
  EXPECT_EQ(draw("a", 768, 2048).stored_count(), 47185);
  EXPECT_EQ(draw("a", 10, 10).stored_count(), 3);
  spec.sparsity = 0.9;
  EXPECT_EQ(draw("a", 10, 10).stored_count(), 10);
  spec.sparsity = 0.95;
  EXPECT_EQ(draw("a", 20, 20).stored_count(), 20);

  spec.sparsity = 0.97;
  const SparseLayout layout = draw("a", 768, 768);
  EXPECT_EQ(layout, draw("a", 768, 768));
  EXPECT_FALSE(layout == draw("b", 768, 768));
  const std::vector<int64_t> cells = layout.LogicalIndices();
  // Sorted and distinct; uniform over the weight, not row by row.
  int64_t first_quarter = 0;
  for (size_t i = 1; i < cells.size(); ++i) ASSERT_LT(cells[i - 1], cells[i]);
  for (int64_t cell : cells) first_quarter += cell < 768 * 768 / 4;
  const double expected = 17694 / 4.0, deviation = std::sqrt(17694 * 0.25 * 0.75 * 0.97);
  EXPECT_NEAR(static_cast<double>(first_quarter), expected, 4 * deviation);
  bool rows_differ = false;
  for (int64_t r = 1; r < 768; ++r) {
    rows_differ |= layout.row_offsets()[r + 1] - layout.row_offsets()[r] != layout.row_offsets()[1];
  }
  EXPECT_TRUE(rows_differ);
}

TEST_F(LinearTest, InitialValuesAsPublished) {
  const auto extremes = [&](const Parameter& parameter) {
    double low = 0, high = 0, squares = 0;
    const int64_t count = parameter.logical_count();
    const InitialValues initial(parameter, 3);
    for (int64_t i = 0; i < count; ++i) {
      const double value = initial[i];
      low = std::min(low, value);
      high = std::max(high, value);
      squares += value * value;
    }
    return std::vector<double>{low, high, std::sqrt(squares / static_cast<double>(count))};
  };
  const LinearSpec linear = {.name = "layers.0.mlp.down", .out = 60, .in = 400};
  SparsitySpec spec;
  spec.sparsity = 0.5;
  spec.rank = 16;
  const auto parameters = [&](const char* name) {
    spec.parameterisation = name;
    const Parameterisation* row = FindParameterisation(name);
    return row->create(linear, spec, row->draw_layout(linear, spec, 1), backend_)->Parameters();
  };
  const auto sltrain = parameters("sparse_plus_low_rank");
  const double bound = 1 / std::sqrt(400.0);
  for (int p : {0, 1}) {
    const auto [low, high, rms] =
        std::tuple(extremes(sltrain[p])[0], extremes(sltrain[p])[1], extremes(sltrain[p])[2]);
    EXPECT_GE(low, -bound);
    EXPECT_LE(high, bound);
    EXPECT_LT(low, -0.99 * bound);
    EXPECT_GT(high, 0.99 * bound);
    EXPECT_NEAR(rms, bound / std::sqrt(3.0), 0.02 * bound);
  }
  EXPECT_EQ(extremes(sltrain[2])[2], 0.0);
  const double cola_std = std::pow(460.0, -0.25) * std::pow(16.0, -0.25);
  for (const Parameter& factor : parameters("cola")) {
    EXPECT_NEAR(extremes(factor)[2], cola_std, 0.05 * cola_std);
  }
  // rank * std_a^2 * std_b^2 is the dense weight's variance.
  const auto low_rank = parameters("low_rank");
  EXPECT_NEAR(16 * std::pow(low_rank[0].init_std * low_rank[1].init_std, 2), 0.02 * 0.02, 1e-9);
}

// What LOST starts from is the dense start but for the columns that S leaves out.
TEST(LostStartTest, FactorsAndChannelsAreTheDenseStart) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{24, 40}, {40, 24}}) {
    const LinearSpec linear = {.name = "layers.0.mlp.up", .out = out, .in = in};
    SparsitySpec sparsity;
    sparsity.parameterisation = "sparse_plus_low_rank";
    sparsity.sparsity = 0.75;
    sparsity.rank = 6;
    sparsity.alpha = 3;
    sparsity.factor_start = FactorStart::kLost;
    const LostStart start = ComputeLostStart(linear, sparsity, 7);
    EXPECT_EQ(static_cast<int64_t>(start.channels.size()), in / 4);
    Parameter dense;
    dense.name = "layers.0.mlp.up.weight";
    std::vector<double> norms(in, 0.0);
    double rest_squares = 0, dense_squares = 0;
    const InitialValues initial(dense, 7);
    for (int64_t i = 0; i < out; ++i) {
      for (int64_t j = 0; j < in; ++j) {
        double low_rank = 0;
        for (int64_t k = 0; k < sparsity.rank; ++k) {
          low_rank += static_cast<double>(start.b[i * sparsity.rank + k]) * start.a[k * in + j];
        }
        const double w = initial[i * in + j], rest = start.rest[i * in + j];
        EXPECT_NEAR(sparsity.low_rank_scale() * low_rank + rest, w, 1e-7);
        norms[j] += rest * rest;
        rest_squares += rest * rest;
        dense_squares += w * w;
      }
    }
    // The largest singular values: more than any six of 24 random directions would hold.
    EXPECT_LT(rest_squares, 0.6 * dense_squares);
    // Factors share them: A's rows and B's columns are orthogonal, of equal norms.
    for (int64_t k = 0; k < sparsity.rank; ++k) {
      for (int64_t l = 0; l <= k; ++l) {
        double a = 0, b = 0;
        for (int64_t j = 0; j < in; ++j) a += double{start.a[k * in + j]} * start.a[l * in + j];
        for (int64_t i = 0; i < out; ++i) {
          b += double{start.b[i * sparsity.rank + k]} * start.b[i * sparsity.rank + l];
        }
        EXPECT_NEAR(a, b, 1e-6);
        if (l < k) {
          EXPECT_NEAR(a, 0, 1e-6);
        }
      }
    }
    // The kept channels are the largest of what is left.
    double least_kept = 1e9, most_left = 0;
    for (int64_t j = 0; j < in; ++j) {
      const bool kept = std::ranges::binary_search(start.channels, static_cast<int32_t>(j));
      if (kept) least_kept = std::min(least_kept, norms[j]);
      if (!kept) most_left = std::max(most_left, norms[j]);
    }
    EXPECT_GE(least_kept, most_left);
    const SparseLayout layout = DrawLostLayout(linear, sparsity, 7);
    EXPECT_EQ(layout.nonzero_count(), out * in / 4);
    EXPECT_EQ(layout.columns()[0], start.channels[0]);
  }
}

}  // namespace
}  // namespace filigree
