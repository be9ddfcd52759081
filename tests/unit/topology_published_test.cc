// Published numbers and definitions: clocks, curves and distributions.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/unit/topology_testing.h"
#include "trainer/topology/plan.h"
#include "kernels/sparse/unit_layout.h"

namespace filigree {
namespace {

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
        EXPECT_EQ(StoredUnitCount(layout),
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

}  // namespace
}  // namespace filigree
