// The decoders' explicit backward passes against central finite differences in double precision:
// both families, tied and untied heads, every parameterisation of the registry, every parameter.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "tests/unit/model_testing.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 7;

// No width is a multiple of the blocks, three key-value heads, a vocabulary that needs padding.
ModelSpec Odd(ModelFamily family, bool tied_head) {
  return {.family = family,
          .layers = 2,
          .width = 20,
          .heads = 6,
          .kv_heads = family == ModelFamily::kLlama ? 3 : 6,
          .head_size = 4,
          .feed_forward = 26,
          .vocab_size = 37,
          .padded_vocab_size = 40,
          .max_positions = 9,
          .tied_head = tied_head};
}

std::vector<SparsitySpec> HalfOf(std::string_view parameterisation) {
  SparsitySpec sparsity;
  sparsity.parameterisation = std::string(parameterisation);
  sparsity.sparsity = parameterisation == "dense" ? 0.0 : 0.5;
  sparsity.block_out = 8;
  sparsity.block_in = 6;
  sparsity.rank = 3;
  sparsity.n = 1;
  sparsity.m = 2;
  return {sparsity};
}

// A loss over two micro-batches, the second one smaller: gradients add up.
class Problem {
 public:
  Problem(const ModelSpec& spec, const std::vector<SparsitySpec>& sparsity,
          int64_t row_alignment = 1)
      : tested_(spec, sparsity, 3, kSeqLen, {}, row_alignment),
        batches_{TestBatch::Random(3, kSeqLen, spec.vocab_size, 1),
                 TestBatch::Random(1, kSeqLen - 2, spec.vocab_size, 2)} {
    tested_.Randomize();
  }
  TestModel& tested() { return tested_; }

  double Loss() {
    tested_.model().ValuesChanged();
    double sum = 0;
    for (const TestBatch& batch : batches_) sum += kScale * tested_.Loss(batch);
    return sum;
  }
  double LossAndGradients() {
    tested_.ZeroGradients();
    double sum = 0;
    for (const TestBatch& batch : batches_) sum += kScale * tested_.LossAndGradients(batch, kScale);
    return sum;
  }
  // The same gradients, over those that are there.
  void GradientsFromAStart() {
    tested_.model().StartGradients();
    for (const TestBatch& batch : batches_) tested_.LossAndGradients(batch, kScale);
  }

 private:
  static constexpr double kScale = 1.0 / 20;
  TestModel tested_;
  std::vector<TestBatch> batches_;
};

// Slope of the loss where the stored values of a parameter move along `direction`.
double Slope(Problem& problem, int parameter, const std::vector<double>& direction) {
  constexpr double kStep = 1e-5;
  double* values = problem.tested().values(parameter);
  const std::vector<double> kept(values, values + direction.size());
  const auto loss_at = [&](double step) {
    for (size_t i = 0; i < kept.size(); ++i) values[i] = kept[i] + step * direction[i];
    return problem.Loss();
  };
  const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
  std::copy(kept.begin(), kept.end(), values);
  return slope;
}

void ExpectSlope(Problem& problem, int parameter, const std::vector<double>& direction,
                 const std::string& what) {
  const double* grads = problem.tested().grads(parameter);
  double expected = 0;
  for (size_t i = 0; i < direction.size(); ++i) expected += grads[i] * direction[i];
  const double slope = Slope(problem, parameter, direction);
  EXPECT_NEAR(expected, slope, 1e-9 + 1e-7 * std::abs(slope)) << what;
}

// A random direction through all cells at once finds an error in any of them; single cells say
// where. Padding of edge blocks and of the vocabulary has no gradient at all.
void CheckParameter(Problem& problem, int index) {
  constexpr size_t kCells = 12;
  const Parameter& p = problem.tested().parameters()[index];
  const std::vector<int64_t> logical = p.layout.LogicalIndices();
  const double* grads = problem.tested().grads(index);
  std::vector<size_t> cells;
  for (size_t slot = 0; slot < logical.size(); ++slot) {
    if (logical[slot] >= 0) {
      cells.push_back(slot);
    } else {
      EXPECT_EQ(grads[slot], 0.0) << p.name << " padding " << slot;
    }
  }
  for (int64_t slot = p.layout.stored_count(); slot < p.segment_count(); ++slot) {
    EXPECT_EQ(grads[slot], 0.0) << p.name << " padding " << slot;
  }
  ASSERT_EQ(static_cast<int64_t>(cells.size()), p.layout.nonzero_count());
  std::vector<double> direction(logical.size(), 0.0);
  const double unit = 1.0 / std::sqrt(static_cast<double>(cells.size()));
  for (size_t slot : cells) {
    direction[slot] = unit * RandomNormal(5, RngStream("direction", p.name), slot);
  }
  ExpectSlope(problem, index, direction, p.name + " along a random direction");
  for (size_t k = 0; k < std::min(kCells, cells.size()); ++k) {
    const size_t slot = cells[k * cells.size() / std::min(kCells, cells.size())];
    std::fill(direction.begin(), direction.end(), 0.0);
    direction[slot] = 1;
    ExpectSlope(problem, index, direction, p.name + " slot " + std::to_string(slot));
  }
}

class GradientTest : public ::testing::TestWithParam<std::tuple<ModelFamily, bool>> {
 protected:
  ModelSpec spec() const { return Odd(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

TEST_P(GradientTest, IsTheSlopeOfTheLossForEveryParameterisation) {
  for (const Parameterisation& row : Parameterisations()) {
    SCOPED_TRACE(row.name);
    Problem problem(spec(), HalfOf(row.name));
    EXPECT_NEAR(problem.LossAndGradients(), problem.Loss(), 1e-12);
    int64_t edge_padding = 0;
    for (size_t i = 0; i < problem.tested().parameters().size(); ++i) {
      const Parameter& p = problem.tested().parameters()[i];
      EXPECT_EQ(p.sparsifiable && row.name != "dense", p.layout.kind() != LayoutKind::kDense);
      edge_padding += p.layout.stored_count() - p.layout.nonzero_count();
      CheckParameter(problem, static_cast<int>(i));
    }
    EXPECT_EQ(edge_padding > 0, row.name == "block_sparse");
  }
}

// CoLA's larger models: no activation function but those between the factors.
TEST_P(GradientTest, IsTheSlopeWithoutTheGatesActivation) {
  ModelSpec linear = spec();
  if (linear.family != ModelFamily::kLlama) GTEST_SKIP() << "no gate";
  linear.gate_activation = GateActivation::kIdentity;
  Problem problem(linear, HalfOf("cola")), usual(spec(), HalfOf("cola"));
  EXPECT_NEAR(problem.LossAndGradients(), problem.Loss(), 1e-12);
  EXPECT_NE(problem.Loss(), usual.Loss());
  for (size_t i = 0; i < problem.tested().parameters().size(); ++i) {
    CheckParameter(problem, static_cast<int>(i));
  }
}

TEST_P(GradientTest, IsTheSameAtEveryLevelOfRecomputation) {
  ModelSpec spec = this->spec();
  Problem reference(spec, HalfOf("block_sparse"));
  const double loss = reference.LossAndGradients();
  for (Recompute level : {Recompute::kActivations, Recompute::kLayer}) {
    spec.recompute = level;
    Problem problem(spec, HalfOf("block_sparse"));
    EXPECT_EQ(problem.LossAndGradients(), loss);
    for (size_t i = 0; i < problem.tested().parameters().size(); ++i) {
      const int index = static_cast<int>(i);
      const int64_t count = problem.tested().parameters()[i].segment_count();
      EXPECT_TRUE(std::equal(reference.tested().grads(index),
                             reference.tested().grads(index) + count,
                             problem.tested().grads(index)))
          << problem.tested().parameters()[i].name << " at level " << static_cast<int>(level);
    }
  }
}

// The first micro-batch of a step overwrites every gradient, padding included, the others add: the
// same as adding all of them to zeros.
TEST_P(GradientTest, StartOverwritesWhateverWasThere) {
  for (const Parameterisation& row : Parameterisations()) {
    SCOPED_TRACE(row.name);
    Problem problem(spec(), HalfOf(row.name));
    problem.LossAndGradients();
    TestModel& tested = problem.tested();
    std::vector<std::vector<double>> expected;
    for (size_t i = 0; i < tested.parameters().size(); ++i) {
      double* grads = tested.grads(static_cast<int>(i));
      const int64_t count = tested.parameters()[i].segment_count();
      expected.emplace_back(grads, grads + count);
      std::fill(grads, grads + count, NAN);
    }
    problem.GradientsFromAStart();
    for (size_t i = 0; i < expected.size(); ++i) {
      const double* grads = tested.grads(static_cast<int>(i));
      EXPECT_TRUE(std::equal(expected[i].begin(), expected[i].end(), grads))
          << tested.parameters()[i].name;
    }
  }
}

// Activations between factors have places of their own, also where only some layers have factors.
TEST_P(GradientTest, FactorsInSomeLayersAtEveryLevelOfRecomputation) {
  std::vector<SparsitySpec> sparsity = HalfOf("cola");
  sparsity[0].include = {"layers.1.*"};
  sparsity[0].exclude = {"layers.1.mlp.up.weight"};
  ModelSpec spec = this->spec();
  std::vector<double> losses;
  for (Recompute level : {Recompute::kNone, Recompute::kActivations, Recompute::kLayer}) {
    spec.recompute = level;
    Problem problem(spec, sparsity);
    losses.push_back(problem.LossAndGradients());
    EXPECT_NEAR(losses.back(), problem.Loss(), 1e-12);
    int factors = 0;
    for (size_t i = 0; i < problem.tested().parameters().size(); ++i) {
      factors += problem.tested().parameters()[i].factor == FactorKind::kNonlinear;
      CheckParameter(problem, static_cast<int>(i));
    }
    EXPECT_EQ(factors, spec.family == ModelFamily::kLlama ? 12 : 10);
  }
  EXPECT_EQ(losses, std::vector<double>(3, losses[0]));
}

// What is stored computes what the dense weight with zeros elsewhere computes.
TEST_P(GradientTest, EqualsTheDenseModelWithZeros) {
  for (const char* parameterisation : {"masked", "block_sparse"}) {
    SCOPED_TRACE(parameterisation);
    Problem sparse(spec(), HalfOf(parameterisation)), dense(spec(), {});
    for (size_t i = 0; i < sparse.tested().parameters().size(); ++i) {
      const Parameter& p = sparse.tested().parameters()[i];
      double* values = dense.tested().values(static_cast<int>(i));
      std::fill_n(values, p.logical_count(), 0.0);
      const std::vector<int64_t> logical = p.layout.LogicalIndices();
      for (size_t slot = 0; slot < logical.size(); ++slot) {
        if (logical[slot] < 0) continue;
        values[logical[slot]] = sparse.tested().values(static_cast<int>(i))[slot];
      }
    }
    EXPECT_NEAR(sparse.LossAndGradients(), dense.LossAndGradients(), 1e-12);
    EXPECT_NEAR(sparse.Loss(), dense.Loss(), 1e-12);
    for (size_t i = 0; i < sparse.tested().parameters().size(); ++i) {
      const Parameter& p = sparse.tested().parameters()[i];
      const std::vector<int64_t> logical = p.layout.LogicalIndices();
      for (size_t slot = 0; slot < logical.size(); ++slot) {
        if (logical[slot] < 0) continue;
        ASSERT_NEAR(sparse.tested().grads(static_cast<int>(i))[slot],
                    dense.tested().grads(static_cast<int>(i))[logical[slot]], 1e-11)
            << p.name << " slot " << slot;
      }
    }
  }
}

// Half of the weights whose names match, in the given parameterisation; others dense.
SparsitySpec HalfOf(std::string_view parameterisation, const char* pattern) {
  SparsitySpec sparsity = HalfOf(parameterisation)[0];
  sparsity.include = {pattern};
  return sparsity;
}

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

// What GELU keeps in a byte is its derivative to 1/400: the loss does not know of it, gradients move by
// as much, and running a layer again makes the same codes.
TEST_P(GradientTest, FollowsWithCodesOfGelusDerivative) {
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
TEST_P(GradientTest, IsTheSameWithAPaddedFeedForward) {
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
TEST_P(GradientTest, PaddingCountsAsExecutedOnly) {
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
TEST_P(GradientTest, EachParameterIsAnnouncedOnceAndFinal) {
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

INSTANTIATE_TEST_SUITE_P(Families, GradientTest,
                         ::testing::Combine(::testing::Values(ModelFamily::kLlama,
                                                              ModelFamily::kGpt2),
                                            ::testing::Bool()));

}  // namespace
}  // namespace filigree
