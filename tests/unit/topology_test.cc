// The topology engine's updates: exact counts, what is dropped and grown, and when.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "kernels/sparse/unit_layout.h"
#include "tests/unit/topology_testing.h"
#include "trainer/topology/plan.h"
#include "trainer/topology/update.h"

namespace filigree {
namespace {

class UpdateTest : public ::testing::Test {
 protected:
  // Unstructured 20 x 30 and 8 x 40, scores from a generator with many ties.
  std::vector<ScoredWeight> Weights(double density, uint64_t seed = 1) {
    std::vector<ScoredWeight> weights;
    for (const auto& [out, in] : {std::pair{20, 30}, std::pair{8, 40}}) {
      const std::string name = "w" + std::to_string(out);
      ScoredWeight weight{{.name = name,
                           .shape = {out, in, out * in},
                           .layout = RandomUnstructured(out, in, density, seed, name)}};
      for (int64_t i = 0; i < out * in; ++i) {
        weight.keep_scores.push_back(static_cast<float>(RandomBelow(seed, 1, i, 5)));
        weight.grow_scores.push_back(static_cast<float>(RandomBelow(seed, 2, i, 5)));
      }
      weights.push_back(std::move(weight));
    }
    return weights;
  }
};

TEST_F(UpdateTest, DropAndGrowKeepsEveryCountAndGrowsOnlyTheDead) {
  for (const char* rule : {"set", "rigl"}) {
    const auto weights = Weights(0.25);
    const SparsitySpec spec = RuleSpec(rule, 0.75);
    const auto after = ProposeGiven(weights, spec, {.sparsity = 0.75, .drop_fraction = 0.3},
                                    FindTopologyRule(rule)->growth, 5, 100);
    for (size_t i = 0; i < weights.size(); ++i) {
      EXPECT_EQ(after[i].stored_count(), weights[i].layout.stored_count());
      const TopologyChange change = CountChange(weights[i].layout, after[i]);
      const auto expected =
          std::llround(0.3 * static_cast<double>(weights[i].layout.stored_count()));
      EXPECT_EQ(change.dropped, expected) << rule;  // none of the dropped came back
      EXPECT_EQ(change.grown, expected) << rule;
    }
  }
}

TEST_F(UpdateTest, GrowthByGradientTakesTheLargest) {
  auto weights = Weights(0.25);
  const auto live = LiveUnits(weights[0].layout);
  for (size_t i = 0; i < live.size(); ++i) weights[0].grow_scores[i] = static_cast<float>(i);
  const auto after =
      ProposeGiven({weights.data(), 1}, RuleSpec("rigl", 0.75),
                   {.sparsity = 0.75, .drop_fraction = 0.2}, Growth::kGradient, 5, 100);
  const auto now = LiveUnits(after[0]);
  bool dead_seen = false;  // from the highest unit down: first all grown, then none
  for (size_t i = live.size(); i-- > 0;) {
    if (live[i]) continue;
    dead_seen |= !now[i];
    EXPECT_EQ(static_cast<bool>(now[i]), !dead_seen);
  }
}

// A NaN or an infinity where nothing is stored takes part in nothing but growth, where NaN ranks
// last.
TEST_F(UpdateTest, NanInDeadPositionsChangesNothing) {
  const auto clean = Weights(0.25);
  auto planted = clean;
  for (ScoredWeight& weight : planted) {
    const auto live = LiveUnits(weight.layout);
    for (size_t i = 0; i < live.size(); ++i) {
      if (!live[i]) weight.keep_scores[i] = std::nanf("");
    }
  }
  for (const char* distribution : {"uniform", "erk", "global"}) {
    SparsitySpec spec = RuleSpec("gradual_magnitude", 0.9);
    spec.distribution = distribution;
    const auto a = ProposeGiven(clean, spec, {.sparsity = 0.9}, Growth::kNone, 5, 100);
    const auto b = ProposeGiven(planted, spec, {.sparsity = 0.9}, Growth::kNone, 5, 100);
    EXPECT_EQ(a, b) << distribution;
  }
  planted = clean;
  const auto live = LiveUnits(planted[0].layout);
  const size_t dead = std::find(live.begin(), live.end(), 0) - live.begin();
  planted[0].grow_scores[dead] = std::nanf("");
  const auto after =
      ProposeGiven(planted, RuleSpec("rigl", 0.75), {.sparsity = 0.75, .drop_fraction = 0.3},
                   Growth::kGradient, 5, 100);
  EXPECT_FALSE(LiveUnits(after[0])[dead]);
}

TEST_F(UpdateTest, GlobalThresholdKeepsFloorsAndTheTotal) {
  auto weights = Weights(1.0);
  for (float& score : weights[1].keep_scores) score = -1;  // would be emptied
  SparsitySpec spec = RuleSpec("global_magnitude", 0.6);
  spec.min_share = 0;
  spec.min_density = 0.05;
  auto after = ProposeGiven(weights, spec, {.sparsity = 0.6}, Growth::kNone, 5, 100);
  EXPECT_EQ(after[0].stored_count() + after[1].stored_count(), std::llround(0.4 * 920));
  EXPECT_EQ(after[1].stored_count(), 16);
  spec.min_share = 0.5;  // 460 of 920: more than the smaller weight has, so it stays dense
  EXPECT_EQ(GlobalFloors(std::vector{weights[0].shape, weights[1].shape}, spec)[1], 320);
}

TEST_F(UpdateTest, DataFreeRulesDependOnSeedAndStepOnly) {
  const auto weights = Weights(0.25);
  const auto propose = [&](uint64_t seed, int64_t step) {
    auto equal = weights;
    for (auto& weight : equal) {
      weight.keep_scores.assign(weight.keep_scores.size(), 0.0f);
      weight.grow_scores.clear();
    }
    return ProposeGiven(equal, RuleSpec("set", 0.75), {.sparsity = 0.75, .drop_fraction = 0.3},
                        Growth::kRandom, seed, step);
  };
  EXPECT_EQ(propose(1, 100), propose(1, 100));
  EXPECT_NE(propose(1, 100), propose(1, 200));
  EXPECT_NE(propose(1, 100), propose(2, 100));
}

// Memory of one weight where weights take turns, of all under one threshold; as predicted.
TEST_F(UpdateTest, TakesTheMemoryThatIsPlanned) {
  for (const char* distribution : {"uniform", "global"}) {
    const auto weights = Weights(0.75);
    SparsitySpec spec = RuleSpec("gradual_magnitude", 0.5);
    spec.distribution = distribution;
    CpuDevice device;
    CpuBackend backend(device);
    ProposeGiven(weights, spec, {.sparsity = 0.5}, Growth::kNone, 5, 100, backend);
    const WeightShape shapes[] = {weights[0].shape, weights[1].shape};
    EXPECT_EQ(static_cast<int64_t>(device.memory_usage().peak_bytes), ProposalBytes(shapes, spec));
  }
}

// Scores stored units by their magnitude, 1 each, and writes no others; grows at random.
class StoredOnes final : public ScoreSource {
 public:
  StoredOnes(Backend& backend, Stream& stream) : backend_(backend), stream_(stream) {}
  ConstTensorView Keep(size_t, const PreparedLayout& prepared, TensorView memory) override {
    const int64_t count = prepared.layout().stored_count();
    const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
    backend_.ScoreUnits({.weight = &prepared,
                         .values = ConstTensorView(ones.data(), DType::kF32, {count}),
                         .scores = memory},
                        stream_);
    return memory;
  }
  ConstTensorView Grow(size_t) override { return {}; }

 private:
  Backend& backend_;
  Stream& stream_;
};

// What an event grows before it drops has a score of zero: it is the first to go.
TEST_F(UpdateTest, WhatFillsUpIsDroppedFirst) {
  const ScoredWeight weight = Weights(0.25).front();
  const TopologyWeight plain = weight;
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  StoredOnes scores(backend, *stream);
  const int64_t units = plain.shape.units;
  ASSERT_EQ(StoredUnitCount(plain.layout), units / 4);
  const auto after =
      ProposeLayouts({&plain, 1}, RuleSpec("set", 0.5), {.sparsity = 0.5, .drop_fraction = 0.5},
                     Growth::kRandom, 5, 1, scores, backend, *stream);
  EXPECT_EQ(StoredUnitCount(after[0]), units / 2);
  // A quarter of the units go, which are all that were grown: those stored before stay.
  EXPECT_EQ(CountChange(plain.layout, after[0]).dropped, 0);
}

// Every rule over a whole phase: after each event the stored count is the target to the unit, and
// pruning rules never let a unit back.
TEST(RuleTest, CountsAreExactOverWholePhases) {
  for (const TopologyRule* rule : TopologyRules()) {
    for (const bool blocked : {false, true}) {
      SparsitySpec spec =
          RuleSpec(std::string(rule->name).c_str(), rule->name == "sparse_to_dense" ? 0.1 : 0.75);
      spec.update_interval = 7;
      spec.parameterisation = blocked ? "block_sparse" : "masked";
      spec.block_out = 4;
      spec.block_in = 8;
      const LinearSpec linears[] = {{.name = "a", .out = 42, .in = 50},
                                    {.name = "b", .out = 64, .in = 24}};
      const Timeline timeline = {.steps = 300};
      ASSERT_TRUE(rule->validate(spec, timeline).ok()) << rule->validate(spec, timeline).message();
      std::vector<ScoredWeight> weights;
      int64_t total = 0;
      const double start = rule->entry == PhaseEntry::kDraw ? spec.sparsity : spec.initial_sparsity;
      for (const LinearSpec& linear : linears) {
        const WeightShape shape = ShapeOf(linear, spec);
        total += shape.units;
        SparseLayout layout =
            blocked ? RandomBalancedBlocks(linear.out, linear.in, 4, 8, 1 - start, 1, linear.name)
                    : RandomUnstructured(linear.out, linear.in, 1 - start, 1, linear.name);
        weights.push_back({{.name = linear.name, .shape = shape, .layout = std::move(layout)}});
      }
      int events = 0;
      for (int64_t step = 0; step <= timeline.steps; ++step) {
        const auto action = rule->action(spec, timeline, step);
        if (!action) continue;
        ++events;
        for (ScoredWeight& weight : weights) {
          weight.keep_scores.clear();
          weight.grow_scores.clear();
          for (int64_t i = 0; i < weight.shape.units; ++i) {
            weight.keep_scores.push_back(static_cast<float>(RandomBelow(step, 1, i, 9)));
            weight.grow_scores.push_back(static_cast<float>(RandomBelow(step, 2, i, 9)));
          }
        }
        const auto after = ProposeGiven(weights, spec, *action, rule->growth, 11, step);
        const double sparsity = rule->sparsity(spec, timeline, step);
        int64_t stored = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
          stored += StoredUnitCount(after[i]);
          if (spec.distribution == "uniform") {
            EXPECT_EQ(StoredUnitCount(after[i]),
                      std::llround((1 - sparsity) * static_cast<double>(weights[i].shape.units)))
                << rule->name << " step " << step;
          }
          if (rule->growth == Growth::kNone) {
            EXPECT_EQ(CountChange(weights[i].layout, after[i]).grown, 0) << rule->name;
          }
          weights[i].layout = after[i];
        }
        if (spec.distribution == "global") {
          EXPECT_EQ(stored, std::llround((1 - sparsity) * static_cast<double>(total)))
              << rule->name;
        }
      }
      const bool still = rule->name == "static_random" || rule->name == "inherit";
      EXPECT_EQ(events == 0, still) << rule->name;
      EXPECT_EQ(rule->sparsity(spec, timeline, timeline.steps), spec.sparsity) << rule->name;
    }
  }
}

}  // namespace
}  // namespace filigree
