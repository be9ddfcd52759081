// Every parameterisation of a linear: gradients against finite differences, and the forms that
// compute one function against each other.
#include "trainer/linear/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/cpu_testing.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/lost_start.h"

namespace filigree {
namespace {

using Matrix = TestMatrix<double>;

constexpr int64_t kTokens = 7, kOut = 13, kIn = 10;

LinearSpec Spec() { return {.name = "layers.0.mlp.up", .out = kOut, .in = kIn, .bias = true}; }

// What to test of each row of the registry; a row that is not named here is tested as it comes.
std::vector<SparsitySpec> Variants(std::string_view name) {
  SparsitySpec spec;
  spec.parameterisation = name;
  if (name == "dense") return {spec};
  spec.sparsity = 0.6;
  spec.block_out = 4;
  spec.block_in = 3;
  spec.n = 2;
  spec.m = 5;
  spec.rank = 3;
  spec.alpha = 6;
  spec.micro_batch_tokens = kTokens;
  if (name != "sparse_plus_low_rank") return {spec};
  SparsitySpec kept = spec, blocks = spec;
  kept.keep_rebuilt = true;
  blocks.sparse_part = SparsePart::kBlocks;
  blocks.compute = LowRankCompute::kRebuild;
  SparsitySpec factored = blocks;
  factored.compute = LowRankCompute::kFactored;
  return {spec, kept, blocks, factored};
}

// A linear with memory of its own, its parameters drawn at random.
class BoundLinear {
 public:
  BoundLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend) {
    const Parameterisation* row = FindParameterisation(sparsity.parameterisation);
    const Status valid = row->validate(spec, sparsity);
    CHECK(valid.ok()) << valid.message();
    linear_ = row->create(spec, sparsity, row->draw_layout(spec, sparsity, 1), backend);
    std::vector<BoundParameter> bound;
    for (const Parameter& parameter : linear_->Parameters()) {
      const int64_t count = parameter.segment_count();
      Matrix value = Matrix::Random(1, count, RngStream(parameter.name));
      const std::vector<int64_t> logical = parameter.layout.LogicalIndices();
      for (int64_t i = 0; i < count; ++i) {
        if (logical[i] < 0) value(0, i) = 0;  // edge padding
      }
      names_.push_back(parameter.name);
      values_.push_back(value);
      grads_.emplace_back(1, count);
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      bound.push_back({values_[i].flat(), grads_[i].flat(), &overwrite_});
    }
    const int64_t scratch = linear_->memory(DType::kF64).scratch_bytes / sizeof(double);
    scratch_ = Matrix::Constant(1, std::max<int64_t>(scratch, 1), NAN);
    linear_->Bind(bound, scratch > 0 ? scratch_.flat() : TensorView());
    const int64_t inner = linear_->inner_width();
    inner_ = Matrix::Constant(kTokens, std::max<int64_t>(inner, 1), NAN, 2);
    inner_grads_ = Matrix::Constant(kTokens, std::max<int64_t>(inner, 1), NAN, 1);
    has_inner_ = inner > 0;
  }

  void Forward(Matrix& x, Matrix& y, const ProductEpilogue& epilogue, Stream& stream) {
    linear_->Materialize(stream);
    linear_->Forward(x.view(), y.view(), has_inner_ ? inner_.view() : TensorView(), epilogue,
                     stream);
  }
  void Backward(Matrix& x, Matrix& dy, const InputGrad& input_grad, Stream& stream) {
    InnerActivations inner;
    if (has_inner_) inner = {inner_.view(), inner_grads_.view()};
    linear_->Backward(x.view(), dy.view(), inner, input_grad, stream);
  }

  Linear& linear() { return *linear_; }
  const std::vector<std::string>& names() const { return names_; }
  std::vector<Matrix>& values() { return values_; }
  std::vector<Matrix>& grads() { return grads_; }
  void set_overwrite(bool overwrite) { overwrite_ = overwrite; }

 private:
  bool overwrite_ = false;
  std::unique_ptr<Linear> linear_;
  std::vector<std::string> names_;
  std::vector<Matrix> values_, grads_;
  Matrix scratch_{1, 1}, inner_{1, 1}, inner_grads_{1, 1};
  bool has_inner_ = false;
};

class LinearTest : public ::testing::Test {
 protected:
  CpuDevice device_{DType::kF64};
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

TEST_F(LinearTest, GradientsOfEveryParameterisation) {
  for (const Parameterisation& row : Parameterisations()) {
    for (const SparsitySpec& sparsity : Variants(row.name)) {
      SCOPED_TRACE(std::string(row.name) + " compute " +
                   std::to_string(static_cast<int>(sparsity.compute)));
      BoundLinear bound(Spec(), sparsity, backend_);
      Matrix x = Matrix::Random(kTokens, kIn, 1, 2), dy = Matrix::Random(kTokens, kOut, 2, 1);
      Matrix y(kTokens, kOut, 3), dx = Matrix::Constant(kTokens, kIn, NAN, 1);
      const auto loss = [&] {
        bound.Forward(x, y, {}, *stream_);
        return WeightedSum(y, dy);
      };
      loss();
      // Twice: gradients add, the input's is overwritten.
      bound.Backward(x, dy, {.dx = dx.view()}, *stream_);
      const std::vector<Matrix> once = bound.grads();
      bound.Backward(x, dy, {.dx = dx.view()}, *stream_);
      ExpectIsGradient(loss, x, dx, "dx");
      const std::vector<Parameter> parameters = bound.linear().Parameters();
      for (size_t p = 0; p < bound.values().size(); ++p) {
        const auto& grads = std::as_const(bound.grads()[p]);
        ExpectNear(
            grads, [&](int64_t, int64_t j) { return 2 * once[p](0, j); }, 10.0);
        // Padding of edge blocks takes no part: its gradient is zero, whatever it would do.
        Matrix at = bound.values()[p];
        const std::vector<int64_t> logical = parameters[p].layout.LogicalIndices();
        for (int64_t j = 0; j < at.cols(); ++j) {
          if (logical[j] >= 0) continue;
          EXPECT_EQ(grads(0, j), 0.0) << bound.names()[p] << " slot " << j;
        }
        ExpectIsGradient(loss, bound.values()[p], once[p], bound.names()[p].c_str());
      }
    }
  }
}

// Linears that say so overwrite their gradients, sum the input's and let go of the bias's.
TEST_F(LinearTest, GradientsOverwriteAndBiasGradientsAreReleased) {
  for (const Parameterisation& row : Parameterisations()) {
    SCOPED_TRACE(row.name);
    BoundLinear bound(Spec(), Variants(row.name)[0], backend_);
    Matrix x = Matrix::Random(kTokens, kIn, 1), dy = Matrix::Random(kTokens, kOut, 2);
    Matrix y(kTokens, kOut), dx(kTokens, kIn), gelu_input = Matrix::Random(kTokens, kIn, 3);
    bound.Forward(x, y, {}, *stream_);
    bound.Backward(x, dy, {.dx = dx.view(), .gelu_input = gelu_input.view()}, *stream_);
    const std::vector<Matrix> added = bound.grads();
    for (Matrix& grads : bound.grads()) grads.Fill([](int64_t, int64_t) { return NAN; });
    bound.set_overwrite(true);
    bound.Backward(x, dy, {}, *stream_);
    for (size_t p = 0; p < added.size(); ++p) {
      Matrix expected = added[p];
      EXPECT_EQ(bound.grads()[p].data(), expected.data()) << bound.names()[p];
    }
    Matrix sums = Matrix::Constant(1, kIn, NAN), expected_sums(1, kIn);
    bound.Backward(x, dy,
                   {.dx = dx.view(),
                    .gelu_input = gelu_input.view(),
                    .column_sums = sums.flat(),
                    .accumulate_sums = false},
                   *stream_);
    backend_.ColumnSum({dx.view(), expected_sums.flat()}, *stream_);
    EXPECT_EQ(sums.data(), expected_sums.data());
    const BoundParameter released = bound.linear().ReleaseBiasGrad();
    if (released.grads.empty()) continue;
    EXPECT_EQ(released.grads.data(), bound.grads().back().flat().data());
    bound.grads().back().Fill([](int64_t, int64_t) { return 5.0; });
    bound.Backward(x, dy, {}, *stream_);
    ExpectNear(
        std::as_const(bound.grads().back()), [](int64_t, int64_t) { return 5.0; }, 0.0);
  }
}

// What a linear's product does with its input's gradient is the operation after it.
TEST_F(LinearTest, SwiGluGradientsOfEveryParameterisation) {
  for (const Parameterisation& row : Parameterisations()) {
    for (const SparsitySpec& sparsity : Variants(row.name)) {
      for (const bool linear : {false, true}) {
        SCOPED_TRACE(std::string(row.name) + " compute " +
                     std::to_string(static_cast<int>(sparsity.compute)));
        BoundLinear bound(Spec(), sparsity, backend_);
        Matrix x = Matrix::Random(kTokens, kIn, 1, 2), dy = Matrix::Random(kTokens, kOut, 2, 1);
        Matrix gate = Matrix::Random(kTokens, kIn, 3), up = Matrix::Random(kTokens, kIn, 4, 5);
        Matrix y(kTokens, kOut), dx(kTokens, kIn), expected_dup(kTokens, kIn);
        Matrix dgate = Matrix::Constant(kTokens, kIn, NAN, 3), dup = dgate;
        bound.Forward(x, y, {}, *stream_);
        bound.Backward(x, dy, {.dx = dx.view()}, *stream_);
        bound.Backward(x, dy,
                       {.dx = dgate.view(), .swiglu = {gate.view(), up.view(), dup.view(), linear}},
                       *stream_);
        backend_.SwiGluBackward(
            {gate.view(), up.view(), dx.view(), dx.view(), expected_dup.view(), linear}, *stream_);
        const auto &expected = dx, &beside = expected_dup;
        ExpectNear(dgate, [&](int64_t i, int64_t j) { return expected(i, j); });
        ExpectNear(dup, [&](int64_t i, int64_t j) { return beside(i, j); });
      }
    }
  }
}

// One function in all forms, with everything that may happen to a product.
TEST_F(LinearTest, FormsOfSparsePlusLowRankAgreeWithTheMergedWeight) {
  const std::vector<SparsitySpec> variants = Variants("sparse_plus_low_rank");
  BoundLinear rebuilt(Spec(), variants[2], backend_), factored(Spec(), variants[3], backend_);
  ASSERT_EQ(rebuilt.linear().inner_width(), 0);
  ASSERT_EQ(factored.linear().inner_width(), 3);
  SparsitySpec dense_spec;
  BoundLinear dense(Spec(), dense_spec, backend_);
  // W = alpha / r * B A + S.
  const auto& s = std::as_const(rebuilt.values()[0]);
  const auto& a = std::as_const(rebuilt.values()[1]);
  const auto& b = std::as_const(rebuilt.values()[2]);
  dense.values()[0].Fill([&](int64_t, int64_t cell) {
    double sum = 0;
    for (int64_t k = 0; k < 3; ++k)
      sum += 2.0 * b(0, cell / kIn * 3 + k) * a(0, k * kIn + cell % kIn);
    return sum;
  });
  const auto logical = rebuilt.linear().Parameters()[0].layout.LogicalIndices();
  for (size_t slot = 0; slot < logical.size(); ++slot) {
    if (logical[slot] >= 0) dense.values()[0](0, logical[slot]) += s(0, slot);
  }

  Matrix x = Matrix::Random(kTokens, kIn, 1, 2), dy = Matrix::Random(kTokens, kOut, 2, 1);
  Matrix residual = Matrix::Random(kTokens, kOut, 3), gelu_input = Matrix::Random(kTokens, kIn, 4);
  for (int form = 0; form < 8; ++form) {
    SCOPED_TRACE(form);
    const bool with_residual = form & 1, gelu = form & 2, accumulate = form & 4;
    std::map<BoundLinear*, std::vector<Matrix>> results;
    for (BoundLinear* linear : {&dense, &rebuilt, &factored}) {
      Matrix y = Matrix::Constant(kTokens, kOut, NAN, 1), pre = y;
      Matrix dx =
          accumulate ? Matrix::Random(kTokens, kIn, 5, 3) : Matrix::Constant(kTokens, kIn, NAN, 3);
      linear->Forward(x, y,
                      {.residual = with_residual ? residual.view() : TensorView(),
                       .pre_activation = gelu ? pre.view() : TensorView()},
                      *stream_);
      linear->Backward(x, dy,
                       {.dx = dx.view(),
                        .accumulate = accumulate,
                        .gelu_input = gelu ? gelu_input.view() : TensorView()},
                       *stream_);
      results[linear] = {y, dx};
      if (gelu) results[linear].push_back(pre);
    }
    for (BoundLinear* linear : {&rebuilt, &factored}) {
      for (size_t i = 0; i < results[linear].size(); ++i) {
        const auto& expected = std::as_const(results[&dense][i]);
        ExpectNear(
            results[linear][i], [&](int64_t r, int64_t c) { return expected(r, c); }, 10.0);
      }
    }
  }
}

TEST_F(LinearTest, AutoTakesTheFormOfFewerOperations) {
  SparsitySpec spec = Variants("sparse_plus_low_rank")[3];
  spec.compute = LowRankCompute::kAuto;
  const LinearSpec wide = {.name = "layers.0.mlp.up", .out = 64, .in = 64};
  spec.sparsity = 0.875;
  spec.block_out = spec.block_in = 8;
  spec.micro_batch_tokens = 1024;
  const auto inner_width = [&](int64_t rank) {
    spec.rank = rank;
    return BoundLinear(wide, spec, backend_).linear().inner_width();
  };
  EXPECT_EQ(inner_width(8), 8);   // an eighth and a quarter of the dense products
  EXPECT_EQ(inner_width(40), 0);  // 5/4 of them
  spec.sparse_part = SparsePart::kUnstructured;
  EXPECT_EQ(inner_width(8), 0);
}

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

TEST_F(LinearTest, WhatCannotBeIsRefused) {
  SparsitySpec spec = Variants("sparse_plus_low_rank")[0];
  const auto problem = [&] {
    return FindParameterisation(spec.parameterisation)->validate(Spec(), spec).message();
  };
  spec.rank = 0;
  EXPECT_NE(problem().find("rank 0; give a rank from 1 to 10"), std::string::npos) << problem();
  spec.rank = 11;
  EXPECT_NE(problem().find("rank 11"), std::string::npos) << problem();
  spec.rank = 3;
  spec.compute = LowRankCompute::kFactored;
  EXPECT_NE(problem().find("sparse_part: BLOCKS"), std::string::npos) << problem();
  spec.compute = LowRankCompute::kAuto;
  spec.sparsity = 0.999;
  EXPECT_NE(problem().find("leaves none"), std::string::npos) << problem();
  spec.sparse_part = SparsePart::kBlocks;
  EXPECT_NE(problem().find("leaves none"), std::string::npos) << problem();
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
