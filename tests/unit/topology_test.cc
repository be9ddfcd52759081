// The topology engine: selection, criteria, exact counts, and what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "tests/unit/topology_testing.h"
#include "trainer/topology/plan.h"
#include "trainer/topology/criterion.h"
#include "kernels/sparse/unit_layout.h"
#include "trainer/topology/update.h"

namespace filigree {
namespace {

// -------------------------------------------------------------------------------------- selection

// Units of which some may be chosen (mark 1).
struct TestPool {
  uint64_t stream = 0;
  std::vector<float> scores;
  std::vector<uint8_t> marks;
};

// 1 for what is chosen.
std::vector<std::vector<uint8_t>> SelectHighest(std::vector<TestPool> pools, int64_t count) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  std::vector<SelectionPool> views;
  for (TestPool& pool : pools) {
    const auto units = static_cast<int64_t>(pool.marks.size());
    views.push_back({.scores = ConstTensorView(pool.scores.data(), DType::kF32, {units}),
                     .marks = TensorView(pool.marks.data(), DType::kU8, {units}),
                     .stream = pool.stream});
  }
  std::vector<int64_t> counts(pools.size());
  backend.SelectHighest({.pools = views,
                         .count = count,
                         .seed = 1,
                         .chosen_counts = TensorView(counts.data(), DType::kI64,
                                                     {static_cast<int64_t>(counts.size())})},
                        *stream);
  std::vector<std::vector<uint8_t>> marks;
  for (size_t i = 0; i < pools.size(); ++i) {
    EXPECT_EQ(std::count(pools[i].marks.begin(), pools[i].marks.end(), 1), counts[i]);
    marks.push_back(pools[i].marks);
  }
  return marks;
}

TEST(SelectionTest, ExactCountsWithTiesAndNan) {
  std::vector<float> scores(1000, 1.0f);
  for (int i = 0; i < 100; ++i) scores[i] = 2.0f;
  for (int i = 900; i < 1000; ++i) scores[i] = std::nanf("");
  const TestPool pool = {7, scores, std::vector<uint8_t>(1000, 1)};
  for (const int64_t count : {0, 1, 50, 100, 101, 500, 900, 950, 1000, 2000}) {
    const auto chosen = SelectHighest({pool}, count).front();
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), 1), std::min<int64_t>(count, 1000));
    EXPECT_EQ(std::count(chosen.begin(), chosen.begin() + 100, 1), std::min<int64_t>(count, 100));
    EXPECT_EQ(std::count(chosen.begin() + 900, chosen.end(), 1),
              std::clamp<int64_t>(count - 900, 0, 100));
  }
  // Ties favour no end of the weight, and change with the event.
  const auto a = SelectHighest({pool}, 500).front();
  TestPool later = pool;
  later.stream = 8;
  EXPECT_NE(a, SelectHighest({later}, 500).front());
  EXPECT_NEAR(static_cast<double>(std::count(a.begin() + 100, a.begin() + 500, 1)), 200, 50);
  EXPECT_EQ(a, SelectHighest({pool}, 500).front());
}

TEST(SelectionTest, NegativeScoresAndSeveralPools) {
  const auto chosen =
      SelectHighest({{1, {-1, -2, 3}, {1, 1, 1}}, {2, {0, -0.5f, 5}, {1, 1, 0}}}, 3);
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
  static ConstTensorView View(const std::vector<float>& array) {
    return ConstTensorView(array.data(), DType::kF32, {static_cast<int64_t>(array.size())});
  }
  ConstTensorView Dense(const std::vector<float>& array) const {
    return View(array).Reshape({parameter_.shape[0], parameter_.shape[1]});
  }
  // Units that are not stored get none.
  std::vector<float> Score(const char* name) {
    const auto prepared = backend_.PrepareLayout(parameter_.layout);
    std::vector<float> scores(static_cast<size_t>(UnitCount(parameter_.layout)), 0.0f);
    const TensorView view(scores.data(), DType::kF32, {static_cast<int64_t>(scores.size())});
    const ConstTensorView made = ScoreStored(*FindCriterion(name),
                                             {.parameter = &parameter_,
                                              .seed = 3,
                                              .values = View(values_),
                                              .grads = Dense(grads_),
                                              .hessian_grads = Dense(hessian_),
                                              .input_squares = squares_},
                                             *prepared, view, backend_, *stream_);
    EXPECT_EQ(made.empty(), std::string_view(name) == "random");
    return scores;
  }
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
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
  EXPECT_EQ(Score("random"), std::vector<float>(6, 0.0f));
  EXPECT_EQ(Score("wanda"), (std::vector<float>{4, 0, 12, 0, 1.5f, 0}));
  const double initial = InitialValues(parameter_, 3)[4];
  EXPECT_FLOAT_EQ(Score("movement")[4], static_cast<float>((0.25 - initial * initial) / 2));
}

TEST_F(CriterionTest, BlocksSumTheirCells) {
  parameter_.shape = {3, 3};
  // Blocks of 2 x 2 over 3 x 3: the block at (0, 1) holds one column, the one at (1, 0) one row.
  parameter_.layout = SparseLayout::Blocked(3, 3, 2, 2, {0, 2, 3}, {0, 1, 0}).value();
  values_ = {1, 2, 3, 4, -5, 99, 6, 99, 7, 8, 99, 99};  // 99: padding
  grads_.assign(9, 1);
  hessian_.assign(9, 1);
  EXPECT_EQ(Score("magnitude"), (std::vector<float>{10, 11, 15, 0}));
  EXPECT_EQ(Score("gradient"), (std::vector<float>{4, 2, 2, 0}));
  const auto prepared = backend_.PrepareLayout(parameter_.layout);
  std::vector<float> grown(4);
  backend_.ScoreUnits({.weight = prepared.get(),
                       .dense = Dense(grads_),
                       .every_unit = true,
                       .scores = TensorView(grown.data(), DType::kF32, {4})},
                      *stream_);
  EXPECT_EQ(grown, (std::vector<float>{4, 2, 2, 1}));
}

// ---------------------------------------------------------------------------------------- updates

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
    EXPECT_EQ(static_cast<int64_t>(device.memory_usage().peak_bytes),
              ProposalBytes(shapes, spec));
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
  const auto after = ProposeLayouts({&plain, 1}, RuleSpec("set", 0.5),
                                    {.sparsity = 0.5, .drop_fraction = 0.5}, Growth::kRandom, 5, 1,
                                    scores, backend, *stream);
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
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.min_density = 0.1;
  refused(spec, "min_density = 0.1 is a floor under one threshold");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.criterion = "movement";
  refused(spec, "nothing moves before it", 0);
  spec = RuleSpec("one_shot", 0.75);
  spec.criterion = "movement";
  refused(spec, "nothing moves before it");
  spec = RuleSpec("static_random", 0.75);
  spec.include = {"layers.*.mlp.*", "layers.*.attn.*", "embedding.weight"};
  refused(spec, "include = \"layers.*.attn.*\" matches no weight");
  refused(spec, "include = \"embedding.weight\" matches no weight");
}

}  // namespace
}  // namespace filigree
