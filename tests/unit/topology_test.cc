// The topology engine: published numbers, exact counts, and random configurations of everything.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "trainer/topology/plan.h"
#include "trainer/topology/selection.h"
#include "trainer/topology/units.h"
#include "trainer/topology/update.h"

namespace filigree {
namespace {

SparsitySpec RuleSpec(const char* rule, double sparsity) {
  SparsitySpec spec = FindTopologyRule(rule)->defaults();
  spec.rule = rule;
  spec.parameterisation = "masked";
  spec.sparsity = sparsity;
  if (spec.initial_sparsity < 0) spec.initial_sparsity = sparsity;
  return spec;
}

// ------------------------------------------------------------------------------ published numbers

TEST(TimelineTest, JourneyStartsAndEndsWhereItsConfigurationsSay) {
  const EventGrid half = EventsOf(RuleSpec("journey", 0.5), {.steps = 72200});
  EXPECT_EQ(half.first, 12500);
  EXPECT_EQ(half.last(), 47200);
  EXPECT_EQ(half.interval, 100);
  const EventGrid more = EventsOf(RuleSpec("journey", 0.6), {.steps = 26800});
  EXPECT_EQ(more.first, 4100);
  EXPECT_EQ(more.last(), 16600);
}

TEST(TimelineTest, JourneyDensityIsGeometricInItsEvents) {
  const SparsitySpec spec = RuleSpec("journey", 0.5);
  const Timeline timeline = {.steps = 72200};
  const EventGrid grid = EventsOf(spec, timeline);
  EXPECT_EQ(grid.count, 348);
  for (int64_t k = 0; k < grid.count; ++k) {
    const double expected =
        std::pow(0.5, static_cast<double>(k + 1) / static_cast<double>(grid.count));
    const int64_t step = grid.first + 100 * k;
    EXPECT_NEAR(1 - CurveSparsity(spec, timeline, step), expected, 1e-12);
    EXPECT_NEAR(1 - CurveSparsity(spec, timeline, step + 99), expected, 1e-12);
  }
  EXPECT_EQ(CurveSparsity(spec, timeline, 12499), 0);
  EXPECT_EQ(CurveSparsity(spec, timeline, 72200), 0.5);
}

// The table of starts, ends and average densities (methods, C.1).
TEST(TimelineTest, JourneyAverageDensities) {
  struct Row {
    double sparsity, start, end, density;
  };
  for (const Row& row : {Row{0.2, .223, .721, .893}, Row{0.5, .173, .654, .693},
                         Row{0.75, .115, .540, .460}, Row{0.95, .037, .268, .146}}) {
    SparsitySpec spec = RuleSpec("journey", row.sparsity);
    spec.update_interval = 1;
    const int64_t steps = 100000;
    const EventGrid grid = EventsOf(spec, {.steps = steps});
    EXPECT_NEAR(static_cast<double>(grid.first) / steps, row.start, 6e-4);
    EXPECT_NEAR(static_cast<double>(grid.last()) / steps, row.end, 6e-4);
    double sum = 0;
    for (int64_t step = 0; step < steps; step += 10) {
      sum += 1 - CurveSparsity(spec, {.steps = steps}, step);
    }
    EXPECT_NEAR(sum / (steps / 10), row.density, 6e-4);
  }
}

TEST(TimelineTest, ZhuGuptaIsCubicFromItsFirstEventToItsLast) {
  SparsitySpec spec = RuleSpec("gradual_magnitude", 0.9);
  spec.clock = Clock::kSteps;
  spec.begin = 2000;
  spec.end = 7500;
  spec.update_interval = 100;
  const Timeline timeline = {.steps = 10000};
  for (int64_t step = 2000; step <= 7500; step += 100) {
    const double progress = static_cast<double>(step - 2000) / 5500;
    EXPECT_NEAR(CurveSparsity(spec, timeline, step), 0.9 - 0.9 * std::pow(1 - progress, 3), 1e-12);
  }
}

TEST(TimelineTest, ClocksAgree) {
  SparsitySpec spec = RuleSpec("gradual_magnitude", 0.8);
  const Timeline timeline = {.steps = 1000, .tokens_per_step = 512};
  const auto grid_of = [&](Clock clock, double begin, double end) {
    spec.clock = clock;
    spec.begin = begin;
    spec.end = end;
    const EventGrid grid = EventsOf(spec, timeline);
    return std::pair(grid.first, grid.last());
  };
  EXPECT_EQ(grid_of(Clock::kSteps, 200, 700), std::pair(int64_t{200}, int64_t{700}));
  EXPECT_EQ(grid_of(Clock::kFraction, 0.2, 0.7), std::pair(int64_t{200}, int64_t{700}));
  EXPECT_EQ(grid_of(Clock::kTokens, 200 * 512, 700 * 512), std::pair(int64_t{200}, int64_t{700}));
}

TEST(TimelineTest, PointsHoldUntilTheNext) {
  SparsitySpec spec = RuleSpec("gradual_magnitude", 0.8);
  spec.curve = SparsityCurve::kPoints;
  spec.clock = Clock::kSteps;
  spec.points = {{10, 0.5}, {20, 0.8}};
  const Timeline timeline = {.steps = 100};
  EXPECT_TRUE(FindTopologyRule("gradual_magnitude")->validate(spec, timeline).ok());
  EXPECT_EQ(CurveSparsity(spec, timeline, 9), 0);
  EXPECT_EQ(CurveSparsity(spec, timeline, 10), 0.5);
  EXPECT_EQ(CurveSparsity(spec, timeline, 99), 0.8);
  EXPECT_TRUE(IsCurveEvent(spec, timeline, 20));
  EXPECT_FALSE(IsCurveEvent(spec, timeline, 21));
}

TEST(TimelineTest, DropFractionFallsAlongACosine) {
  const SparsitySpec rigl = RuleSpec("rigl", 0.75);
  const Timeline timeline = {.steps = 1000};
  EXPECT_NEAR(DropFractionAt(rigl, timeline, 0), 0.3, 1e-12);
  EXPECT_NEAR(DropFractionAt(rigl, timeline, 375), 0.15, 1e-12);
  EXPECT_NEAR(DropFractionAt(rigl, timeline, 750), 0, 1e-12);
  EXPECT_FALSE(IsDropEvent(rigl, timeline, 0));
  EXPECT_TRUE(IsDropEvent(rigl, timeline, 700));
  EXPECT_FALSE(IsDropEvent(rigl, timeline, 800));  // stops at 75 % of training
  const SparsitySpec granet = RuleSpec("granet", 0.75);
  EXPECT_NEAR(DropFractionAt(granet, timeline, 1000), 0.005, 1e-12);
}

// Attention matrices of a llama block get 1.455 to 1.458 times the density of feed-forward ones.
TEST(DistributionTest, ErkOnLlamaShapes) {
  struct Shape {
    int64_t width, feed_forward;
  };
  for (const Shape& s :
       {Shape{512, 1376}, Shape{768, 2048}, Shape{1024, 2736}, Shape{4096, 11008}}) {
    std::vector<WeightShape> weights;
    for (int i = 0; i < 4; ++i) weights.push_back({s.width, s.width, s.width * s.width});
    for (int i = 0; i < 3; ++i) {
      weights.push_back({s.feed_forward, s.width, s.width * s.feed_forward});
    }
    const auto counts = FindDistribution("erk")->counts(weights, 0.75);
    const double attention = static_cast<double>(counts[0]) / static_cast<double>(weights[0].units);
    const double mlp = static_cast<double>(counts[4]) / static_cast<double>(weights[4].units);
    EXPECT_GE(attention / mlp, 1.4545);
    EXPECT_LE(attention / mlp, 1.4585);
    int64_t total = 0;
    for (const WeightShape& weight : weights) total += weight.units;
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), total / 4);
  }
}

TEST(DistributionTest, ErKeepsSmallWeightsDenseAndTheTotalExact) {
  const std::vector<WeightShape> weights = {{4, 4, 16}, {100, 100, 10000}, {64, 300, 19200}};
  for (double sparsity = 0; sparsity < 0.99; sparsity += 0.013) {
    const auto counts = FindDistribution("er")->counts(weights, sparsity);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}),
              std::llround((1 - sparsity) * 29216));
    for (size_t i = 0; i < weights.size(); ++i) {
      EXPECT_GE(counts[i], 0);
      EXPECT_LE(counts[i], weights[i].units);
    }
  }
  EXPECT_EQ(FindDistribution("er")->counts(weights, 0.9)[0], 16);
}

// What a phase draws of SLTrain's sparse part is what its parameterisation draws alone: single
// weights rounded down as the reference does, blocks to the nearest.
TEST(DistributionTest, SparsePlusLowRankKeepsItsOwnCounts) {
  PhaseSpec phase;
  SparsitySpec spec;
  spec.include = {"layers.*"};
  spec.parameterisation = "sparse_plus_low_rank";
  spec.rank = 4;
  spec.block_out = spec.block_in = 8;
  const Parameterisation& row = *FindParameterisation(spec.parameterisation);
  for (const bool blocks : {false, true}) {
    spec.sparse_part = blocks ? SparsePart::kBlocks : SparsePart::kUnstructured;
    for (const int64_t out : {20, 33, 64, 100}) {
      const LinearSpec linear = {.name = "layers.0.mlp.up", .out = out, .in = 47};
      const int64_t units = ShapeOf(linear, spec).units;
      EXPECT_EQ(units, blocks ? (out + 7) / 8 * 6 : out * 47);
      for (spec.sparsity = 0.5; spec.sparsity < 0.96; spec.sparsity += 0.0311) {
        phase.sparsity = {spec};
        const std::vector<LinearSpec> linears = {linear};
        const SparsitySpec drawn =
            MatchSparsity("layers.0.mlp.up.weight", InitialSparsity(linears, phase));
        const SparseLayout layout = row.draw_layout(linear, drawn, 1);
        const double wanted = (1 - spec.sparsity) * static_cast<double>(units);
        EXPECT_EQ(StoredUnits(layout),
                  blocks ? std::llround(wanted) : static_cast<int64_t>(wanted + 1e-9))
            << units << " units at " << spec.sparsity;
        EXPECT_TRUE(SameKind(layout, spec));
        spec.sparse_part = blocks ? SparsePart::kUnstructured : SparsePart::kBlocks;
        EXPECT_FALSE(SameKind(layout, spec));
        spec.sparse_part = blocks ? SparsePart::kBlocks : SparsePart::kUnstructured;
      }
    }
  }
}

// -------------------------------------------------------------------------------------- selection

TEST(SelectionTest, ExactCountsWithTiesAndNan) {
  std::vector<float> scores(1000, 1.0f);
  for (int i = 0; i < 100; ++i) scores[i] = 2.0f;
  for (int i = 900; i < 1000; ++i) scores[i] = std::nanf("");
  const std::vector<uint8_t> all(1000, 1);
  const Pool pool = {"w", scores, &all};
  for (const int64_t count : {0, 1, 50, 100, 101, 500, 900, 950, 1000, 2000}) {
    const auto chosen = SelectHighest({&pool, 1}, count, 1, 7).front();
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), 1), std::min<int64_t>(count, 1000));
    EXPECT_EQ(std::count(chosen.begin(), chosen.begin() + 100, 1), std::min<int64_t>(count, 100));
    EXPECT_EQ(std::count(chosen.begin() + 900, chosen.end(), 1),
              std::clamp<int64_t>(count - 900, 0, 100));
  }
  // Ties favour no end of the weight, and change with the event.
  const auto a = SelectHighest({&pool, 1}, 500, 1, 7).front();
  const auto b = SelectHighest({&pool, 1}, 500, 1, 8).front();
  EXPECT_NE(a, b);
  EXPECT_NEAR(static_cast<double>(std::count(a.begin() + 100, a.begin() + 500, 1)), 200, 50);
  EXPECT_EQ(a, SelectHighest({&pool, 1}, 500, 1, 7).front());
}

TEST(SelectionTest, NegativeScoresAndSeveralPools) {
  const std::vector<float> a = {-1, -2, 3}, b = {0, -0.5f, 5};
  const std::vector<uint8_t> all(3, 1), some = {1, 1, 0};
  const Pool pools[] = {{"a", a, &all}, {"b", b, &some}};
  const auto chosen = SelectHighest(pools, 3, 1, 1);
  EXPECT_EQ(chosen[0], (std::vector<uint8_t>{0, 0, 1}));
  EXPECT_EQ(chosen[1], (std::vector<uint8_t>{1, 1, 0}));
}

// --------------------------------------------------------------------------------------- criteria

class CriterionTest : public ::testing::Test {
 protected:
  CriterionTest() {
    parameter_.name = "layers.0.mlp.up.weight";
    parameter_.shape = {2, 3};
    parameter_.layout = SparseLayout::Unstructured(2, 3, {0, 2, 3}, {0, 2, 1}).value();
  }
  std::vector<float> Score(const char* name) {
    return StoredScores(*FindCriterion(name), {.parameter = &parameter_,
                                               .seed = 3,
                                               .values = values_,
                                               .grads = grads_,
                                               .hessian_grads = hessian_,
                                               .input_squares = squares_});
  }
  Parameter parameter_;
  std::vector<float> values_ = {-2, 3, 0.5f};             // cells 0, 2, 4
  std::vector<float> grads_ = {10, 20, -30, 40, 50, 60};  // dense
  std::vector<float> hessian_ = {1, 2, 3, 4, -5, 6};
  std::vector<double> squares_ = {4, 9, 16};
};

TEST_F(CriterionTest, Formulas) {
  EXPECT_EQ(Score("magnitude"), (std::vector<float>{2, 0, 3, 0, 0.5f, 0}));
  EXPECT_EQ(Score("gradient"), (std::vector<float>{10, 0, 30, 0, 50, 0}));
  EXPECT_EQ(Score("taylor"), (std::vector<float>{20, 0, 90, 0, 25, 0}));
  EXPECT_EQ(Score("snip"), Score("taylor"));
  EXPECT_EQ(Score("grasp"), (std::vector<float>{-2, 0, 9, 0, -2.5f, 0}));
  EXPECT_EQ(Score("wanda"), (std::vector<float>{4, 0, 12, 0, 1.5f, 0}));
  const double initial = InitialValue(parameter_, 3, 4);
  EXPECT_FLOAT_EQ(Score("movement")[4], static_cast<float>((0.25 - initial * initial) / 2));
}

TEST_F(CriterionTest, BlocksSumTheirCells) {
  parameter_.shape = {3, 3};
  // Blocks of 2 x 2 over 3 x 3: the block at (0, 1) holds one column, the one at (1, 0) one row.
  parameter_.layout = SparseLayout::Blocked(3, 3, 2, 2, {0, 2, 3}, {0, 1, 0}).value();
  values_ = {1, 2, 3, 4, -5, 99, 6, 99, 7, 8, 99, 99};  // 99: padding
  grads_.assign(9, 1);
  EXPECT_EQ(Score("magnitude"), (std::vector<float>{10, 11, 15, 0}));
  EXPECT_EQ(GradientScores(parameter_.layout, grads_), (std::vector<float>{4, 2, 2, 1}));
}

// ---------------------------------------------------------------------------------------- updates

class UpdateTest : public ::testing::Test {
 protected:
  // Unstructured 20 x 30 and 8 x 40, scores from a generator with many ties.
  std::vector<TopologyWeight> Weights(double density, uint64_t seed = 1) {
    std::vector<TopologyWeight> weights;
    for (const auto& [out, in] : {std::pair{20, 30}, std::pair{8, 40}}) {
      const std::string name = "w" + std::to_string(out);
      TopologyWeight weight{.name = name,
                            .shape = {out, in, out * in},
                            .layout = RandomUnstructured(out, in, density, seed, name)};
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
    const auto after = ProposeLayouts(weights, spec, {.sparsity = 0.75, .drop_fraction = 0.3},
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
      ProposeLayouts({weights.data(), 1}, RuleSpec("rigl", 0.75),
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
  for (TopologyWeight& weight : planted) {
    const auto live = LiveUnits(weight.layout);
    for (size_t i = 0; i < live.size(); ++i) {
      if (!live[i]) weight.keep_scores[i] = std::nanf("");
    }
  }
  for (const char* distribution : {"uniform", "erk", "global"}) {
    SparsitySpec spec = RuleSpec("gradual_magnitude", 0.9);
    spec.distribution = distribution;
    const auto a = ProposeLayouts(clean, spec, {.sparsity = 0.9}, Growth::kNone, 5, 100);
    const auto b = ProposeLayouts(planted, spec, {.sparsity = 0.9}, Growth::kNone, 5, 100);
    EXPECT_EQ(a, b) << distribution;
  }
  planted = clean;
  const auto live = LiveUnits(planted[0].layout);
  const size_t dead = std::find(live.begin(), live.end(), 0) - live.begin();
  planted[0].grow_scores[dead] = std::nanf("");
  const auto after =
      ProposeLayouts(planted, RuleSpec("rigl", 0.75), {.sparsity = 0.75, .drop_fraction = 0.3},
                     Growth::kGradient, 5, 100);
  EXPECT_FALSE(LiveUnits(after[0])[dead]);
}

TEST_F(UpdateTest, GlobalThresholdKeepsFloorsAndTheTotal) {
  auto weights = Weights(1.0);
  for (float& score : weights[1].keep_scores) score = -1;  // would be emptied
  SparsitySpec spec = RuleSpec("global_magnitude", 0.6);
  spec.min_share = 0;
  spec.min_density = 0.05;
  auto after = ProposeLayouts(weights, spec, {.sparsity = 0.6}, Growth::kNone, 5, 100);
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
    return ProposeLayouts(equal, RuleSpec("set", 0.75), {.sparsity = 0.75, .drop_fraction = 0.3},
                          Growth::kRandom, seed, step);
  };
  EXPECT_EQ(propose(1, 100), propose(1, 100));
  EXPECT_NE(propose(1, 100), propose(1, 200));
  EXPECT_NE(propose(1, 100), propose(2, 100));
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
      std::vector<TopologyWeight> weights;
      int64_t total = 0;
      const double start = rule->entry == PhaseEntry::kDraw ? spec.sparsity : spec.initial_sparsity;
      for (const LinearSpec& linear : linears) {
        const WeightShape shape = ShapeOf(linear, spec);
        total += shape.units;
        SparseLayout layout =
            blocked ? RandomBalancedBlocks(linear.out, linear.in, 4, 8, 1 - start, 1, linear.name)
                    : RandomUnstructured(linear.out, linear.in, 1 - start, 1, linear.name);
        weights.push_back({.name = linear.name, .shape = shape, .layout = std::move(layout)});
      }
      int events = 0;
      for (int64_t step = 0; step <= timeline.steps; ++step) {
        const auto action = rule->action(spec, timeline, step);
        if (!action) continue;
        ++events;
        for (TopologyWeight& weight : weights) {
          weight.keep_scores.clear();
          weight.grow_scores.clear();
          for (int64_t i = 0; i < weight.shape.units; ++i) {
            weight.keep_scores.push_back(static_cast<float>(RandomBelow(step, 1, i, 9)));
            weight.grow_scores.push_back(static_cast<float>(RandomBelow(step, 2, i, 9)));
          }
        }
        const auto after = ProposeLayouts(weights, spec, *action, rule->growth, 11, step);
        const double sparsity = rule->sparsity(spec, timeline, step);
        int64_t stored = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
          stored += StoredUnits(after[i]);
          if (spec.distribution == "uniform") {
            EXPECT_EQ(StoredUnits(after[i]),
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

// ------------------------------------------------------------------------------------- validation

Status ValidateSpec(const SparsitySpec& spec, double lr = 1e-3) {
  RunSpec run;
  PhaseSpec phase;
  phase.name = "only";
  phase.steps = 1000;
  phase.batch = {.seq_len = 8, .tokens_per_step = 64, .micro_batch_sequences = 1};
  phase.schedule.lr = lr;
  phase.sparsity = {spec};
  run.phases = {phase};
  const std::vector<LinearSpec> linears = {{.name = "layers.0.mlp.up", .out = 16, .in = 32}};
  return ValidateTopology(run, linears);
}

TEST(ValidateTest, DefaultsOfEveryRulePass) {
  for (const TopologyRule* rule : TopologyRules()) {
    if (rule->name == "inherit" || rule->name == "iterative_magnitude") continue;
    const SparsitySpec spec =
        RuleSpec(std::string(rule->name).c_str(), rule->name == "sparse_to_dense" ? 0 : 0.75);
    EXPECT_TRUE(ValidateSpec(spec).ok()) << ValidateSpec(spec).message();
  }
}

TEST(ValidateTest, BadInputIsRefusedWithItsPlace) {
  const auto refused = [](const SparsitySpec& spec, const char* text, double lr = 1e-3) {
    const Status status = ValidateSpec(spec, lr);
    EXPECT_EQ(status.exit_code(), 2) << text;
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("phase only"), std::string::npos) << status.message();
  };
  SparsitySpec spec = RuleSpec("gradual_magnitude", 0.75);
  spec.begin = 0.8;
  spec.end = 0.3;
  refused(spec, "end = 0.3 is before begin = 0.8");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.end = 1.5;
  refused(spec, "end = 1.5");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.initial_sparsity = 0.9;
  refused(spec, "the sparsity falls from 0.9");
  spec = RuleSpec("gradual_magnitude", 0.9995);
  refused(spec, "leaves nothing of layers.0.mlp.up.weight");
  spec = RuleSpec("journey", 0.9999);
  refused(spec, "fewer than the floors");
  refused(RuleSpec("rigl", 0.75), "the phase is frozen", 0);
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.criterion = "taylor";
  refused(spec, "the phase is frozen", 0);
  spec.criterion = "snip";
  refused(spec, "take rule one_shot");
  refused(RuleSpec("inherit", 0.75), "no phase before it");
  refused(RuleSpec("iterative_magnitude", 0.75), "rewind_step");
  spec = RuleSpec("sparse_to_dense", 0);
  spec.distribution = "global";
  refused(spec, "distribution = global");
  spec = RuleSpec("set", 0.75);
  spec.update_interval = 5000;
  refused(spec, "update_interval = 5000");
}

}  // namespace
}  // namespace filigree
