// Every parameterisation of a linear: gradients against finite differences, the forms that compute
// one function against each other, and what is refused.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/linear_testing.h"

namespace filigree {
namespace {

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

}  // namespace
}  // namespace filigree
