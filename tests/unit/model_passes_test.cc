// What passes leave beside the plain model's gradients: with codes of GELU's derivative, with
// padding inside, and as the exchange is told of them.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/model_gradient_testing.h"

namespace filigree {
namespace {

class PassesTest : public GradientTest {};

// The gradients of a parameter by logical cell; padding must have none.
std::map<int64_t, double> GradientsByCell(Problem& problem, int index) {
  const Parameter& p = problem.tested().parameters()[index];
  const std::vector<int64_t> logical = p.layout.LogicalIndices();
  const double* grads = problem.tested().grads(index);
  std::map<int64_t, double> cells;
  for (int64_t slot = 0; slot < p.segment_count(); ++slot) {
    if (slot < p.layout.stored_count() && logical[slot] >= 0) {
      cells[logical[slot]] = grads[slot];
    } else {
      EXPECT_EQ(grads[slot], 0.0) << p.name << " padding " << slot;
    }
  }
  return cells;
}

// In the memory of activations, wherever passes of these shapes write.
void LeaveNaNs(Problem& problem) {
  int first_norm = 0;
  while (problem.tested().parameters()[first_norm].init != InitKind::kOnes) ++first_norm;
  double* gain = problem.tested().values(first_norm);
  const double kept = std::exchange(*gain, std::nan(""));
  EXPECT_TRUE(std::isnan(problem.LossAndGradients()));
  *gain = kept;
}

// What GELU keeps in a byte is its derivative to 1/400: the loss does not know of it, gradients
// move by as much, and running a layer again makes the same codes.
TEST_P(PassesTest, FollowsWithCodesOfGelusDerivative) {
  ModelSpec spec = this->spec();
  if (spec.family != ModelFamily::kGpt2) GTEST_SKIP() << "no GELU";
  Problem exact(spec, HalfOf("block_sparse"));
  spec.gelu_derivative_bits = 8;
  Problem coded(spec, HalfOf("block_sparse")), padded(spec, HalfOf("block_sparse"), 8);
  spec.recompute = Recompute::kLayer;
  Problem again(spec, HalfOf("block_sparse"));
  const double loss = exact.LossAndGradients();
  for (Problem* problem : {&coded, &padded, &again}) {
    EXPECT_NEAR(problem->LossAndGradients(), loss, 1e-12);
  }
  double moved = 0;
  for (size_t i = 0; i < exact.tested().parameters().size(); ++i) {
    const Parameter& p = exact.tested().parameters()[i];
    const auto index = static_cast<int>(i);
    double error = 0, size = 0;
    const auto expected = GradientsByCell(exact, index), found = GradientsByCell(coded, index);
    const auto wide = GradientsByCell(padded, index), same = GradientsByCell(again, index);
    for (const auto& [cell, value] : expected) {
      error += std::pow(found.at(cell) - value, 2);
      size += value * value;
      ASSERT_NEAR(wide.at(cell), found.at(cell), 1e-11) << p.name << " cell " << cell;
      ASSERT_EQ(same.at(cell), found.at(cell)) << p.name << " cell " << cell;
    }
    // Nothing moves the gradient of keys' biases, which is zero.
    EXPECT_LE(std::sqrt(error), 0.01 * std::sqrt(size) + 1e-12) << p.name;
    if (size > 1e-18) moved = std::max(moved, std::sqrt(error / size));
  }
  EXPECT_GT(moved, 1e-4);
  const auto bytes = [](Problem& problem) {
    return problem.tested().model().ActivationBytes(1, kSeqLen, /*training=*/true);
  };
  EXPECT_LT(bytes(coded), bytes(exact));
}

// A device that pads the feed-forward's width inside computes what one that does not computes,
// whatever mixture of parameterisations makes and reads the padding.
TEST_P(PassesTest, IsTheSameWithAPaddedFeedForward) {
  std::vector<std::vector<SparsitySpec>> mixtures = {
      {HalfOf("block_sparse", "*.mlp.up.weight")},
      {HalfOf("block_sparse", "*.mlp.down.weight")},
      {HalfOf("masked", "*.mlp.down.weight"), HalfOf("block_sparse", "*.mlp.*.weight")}};
  for (const Parameterisation& row : Parameterisations()) mixtures.push_back(HalfOf(row.name));
  for (bool factored : {false, true}) {
    SparsitySpec form = HalfOf("sparse_plus_low_rank")[0];
    form.sparse_part = SparsePart::kBlocks;
    form.compute = factored ? LowRankCompute::kFactored : LowRankCompute::kRebuild;
    form.keep_rebuilt = false;
    mixtures.push_back({form});
  }
  for (Recompute level : {Recompute::kNone, Recompute::kActivations, Recompute::kLayer}) {
    ModelSpec spec = this->spec();
    spec.recompute = level;
    for (const std::vector<SparsitySpec>& mixture : mixtures) {
      SCOPED_TRACE(mixture[0].parameterisation + " of " + std::to_string(mixture.size()));
      Problem plain(spec, mixture), padded(spec, mixture, /*row_alignment=*/8);
      EXPECT_NEAR(padded.Loss(), plain.Loss(), 1e-12);
      LeaveNaNs(padded);
      EXPECT_NEAR(padded.LossAndGradients(), plain.LossAndGradients(), 1e-12);
      for (size_t i = 0; i < plain.tested().parameters().size(); ++i) {
        const int index = static_cast<int>(i);
        const auto expected = GradientsByCell(plain, index), found = GradientsByCell(padded, index);
        ASSERT_EQ(found.size(), expected.size());
        for (const auto& [cell, value] : expected) {
          ASSERT_NEAR(found.at(cell), value, 1e-11)
              << plain.tested().parameters()[i].name << " cell " << cell;
        }
      }
    }
  }
}

// What runs is counted with its padding, what is asked for without.
TEST_P(PassesTest, PaddingCountsAsExecutedOnly) {
  const ModelSpec spec = this->spec();
  ModelSpec wide = spec;
  wide.feed_forward = 32;
  for (const char* parameterisation :
       {"dense", "masked", "low_rank", "sparse_plus_low_rank", "cola"}) {
    SCOPED_TRACE(parameterisation);
    std::vector<SparsitySpec> sparsity = HalfOf(parameterisation);
    sparsity[0].rank = 8;  // aligned, so that only the feed-forward's width is padded
    TestModel plain(spec, sparsity, 1, kSeqLen);
    TestModel padded(spec, sparsity, 1, kSeqLen, {}, /*row_alignment=*/8);
    TestModel wider(wide, sparsity, 1, kSeqLen);
    const LinearFlops flops = ForwardFlopsPerToken(padded.model(), kSeqLen);
    const LinearFlops expected = ForwardFlopsPerToken(plain.model(), kSeqLen);
    EXPECT_EQ(flops.dense_equivalent, expected.dense_equivalent);
    EXPECT_EQ(flops.method, expected.method);
    EXPECT_EQ(flops.executed, ForwardFlopsPerToken(wider.model(), kSeqLen).executed);
    for (size_t i = 0; i < plain.parameters().size(); ++i) {
      const Parameter &p = padded.parameters()[i], &q = plain.parameters()[i];
      EXPECT_EQ(p.shape, q.shape);
      EXPECT_EQ(p.layout.nonzero_count(), q.layout.nonzero_count());
      EXPECT_EQ(p.layout.fingerprint(), q.layout.fingerprint());
    }
  }
}

// The exchange depends on this: each parameter is announced once, after its last contribution.
TEST_P(PassesTest, EachParameterIsAnnouncedOnceAndFinal) {
  const ModelSpec spec = this->spec();
  TestModel tested(spec, HalfOf("masked"), 2, kSeqLen);
  tested.Randomize();
  const TestBatch batch = TestBatch::Random(2, kSeqLen, spec.vocab_size, 4);
  std::vector<int> used(tested.parameters().size(), 0), ready(used);
  std::vector<std::vector<double>> announced(used.size());
  ParameterHooks hooks;
  hooks.before_use = [&](int parameter) { ++used[parameter]; };
  hooks.grad_ready = [&](int parameter) {
    ++ready[parameter];
    const int64_t count = tested.parameters()[parameter].segment_count();
    announced[parameter].assign(tested.grads(parameter), tested.grads(parameter) + count);
  };
  tested.model().set_hooks(hooks);
  tested.LossAndGradients(batch, 1.0);
  for (size_t i = 0; i < used.size(); ++i) {
    const std::string& name = tested.parameters()[i].name;
    EXPECT_EQ(used[i], 1) << name;
    EXPECT_EQ(ready[i], 1) << name;
    EXPECT_TRUE(
        std::equal(announced[i].begin(), announced[i].end(), tested.grads(static_cast<int>(i))))
        << name << " changed after it was announced";
  }
  tested.LossAndGradients(batch, 1.0);
  EXPECT_EQ(used, std::vector<int>(used.size(), 1)) << "nothing changed in between";
}

INSTANTIATE_TEST_SUITE_P(Families, PassesTest, Families());

}  // namespace
}  // namespace filigree
