// The decoders' explicit backward passes against central finite differences in double precision:
// both families, tied and untied heads, every parameterisation of the registry, every parameter.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "tests/unit/model_gradient_testing.h"

namespace filigree {
namespace {

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

INSTANTIATE_TEST_SUITE_P(Families, GradientTest, Families());

}  // namespace
}  // namespace filigree
