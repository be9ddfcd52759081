// Pruning's pure parts: units, the ramp, the choice, the second-order update, smoothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/pruning_ramp_testing.h"
#include "tests/unit/pruning_testing.h"
#include "trainer/model/model.h"
#include "trainer/pruning/compaction.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"
#include "trainer/pruning/saliency.h"
#include "trainer/pruning/second_order.h"

namespace filigree {
namespace {

int64_t ParametersOf(const ModelSpec& model) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto built = Model::Create(model, {}, 1, {}, backend);
  int64_t count = 0;
  for (const Parameter& p : built->parameters()) count += p.logical_count();
  return count;
}

TEST(UnitTableTest, CountsParametersAsTheModelHasThem) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    const ModelSpec model = SmallModel(family);
    const UnitTable table(model);
    EXPECT_EQ(CountParameters(model), ParametersOf(model));
    for (size_t i = 0; i < table.sets().size(); ++i) {
      const UnitSet& set = table.sets()[i];
      std::vector<int64_t> counts;
      for (const UnitSet& other : table.sets()) counts.push_back(other.count);
      --counts[i];
      const ModelSpec smaller = ModelOf(model, table, counts);
      EXPECT_EQ(CountParameters(model) - CountParameters(smaller), set.parameters)
          << NameOf(set.kind) << " of layer " << set.layer;
      EXPECT_EQ(CountParameters(smaller), ParametersOf(smaller));
    }
  }
}

TEST(UnitTableTest, AUnitIsRowsAndColumnsOfItsTensors) {
  const UnitTable table(SmallModel());
  const auto& members = MembersOf(table, table.sets()[0].first + 2);  // a key-value head of layer 0
  std::vector<std::string> text;
  for (const UnitMember& m : members) {
    text.push_back(m.parameter + (m.rows ? " rows " : " columns ") + std::to_string(m.begin) + "+" +
                   std::to_string(m.count));
  }
  EXPECT_THAT(text, ::testing::UnorderedElementsAre("layers.0.attention.q.weight rows 16+8",
                                                    "layers.0.attention.k.weight rows 8+4",
                                                    "layers.0.attention.v.weight rows 8+4",
                                                    "layers.0.attention.o.weight columns 16+8"));
  // A stem channel: three tensors of the vocabulary and nine of each layer.
  EXPECT_EQ(MembersOf(table, table.unit_count() - 1).size(), 3u + 3 * 9);
  EXPECT_EQ(UnitTable(SmallModel(ModelFamily::kGpt2)).sets().size(), 6u);  // no stem
}

TEST(RampTest, ParametersFallAlongTheCurve) {
  PruningSpec spec = SpecOf(600);
  spec.begin = 10;
  spec.end = 14;
  spec.clock = Clock::kSteps;
  const Ramp ramp(spec, {.steps = 20, .tokens_per_step = 8}, 1000);
  EXPECT_FALSE(ramp.IsEvent(9));
  EXPECT_EQ(ramp.AllowedAt(9), 1000);
  EXPECT_EQ(ramp.AllowedAt(10), 920);
  EXPECT_EQ(ramp.AllowedAt(12), 760);
  EXPECT_EQ(ramp.AllowedAt(14), 600);
  EXPECT_TRUE(ramp.IsEvent(17));  // until sizes come out
  EXPECT_EQ(ramp.EventFrom(3), 10);
  EXPECT_EQ(ramp.EventFrom(15), 15);
  EXPECT_EQ(ramp.AllowedAt(19), 600);
}

TEST(ChooseUnitsTest, EndsAtAlignedSizesBelowTheTarget) {
  const ModelSpec model = SmallModel();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<double> scores;
    for (int64_t unit = 0; unit < UnitTable(model).unit_count(); ++unit) {
      scores.push_back(RandomUniform(seed, 3, static_cast<uint64_t>(unit)));
    }
    for (const bool even : {true, false}) {
      SCOPED_TRACE(std::to_string(seed) + (even ? ", even" : ", uneven"));
      PruningSpec spec = SpecOf(CountParameters(model) / 2);
      spec.even_layers = even;
      spec.units_per_event = seed % 3 == 0 ? 8 : 0;
      const ModelSpec left = RunRamp(model, spec, scores, 200);
      EXPECT_LE(CountParameters(left), spec.target_parameters);
      EXPECT_EQ(left.width % 8, 0);
      EXPECT_EQ(left.norm_divisor(), 32);
      for (int64_t layer = 0; layer < 3; ++layer) {
        EXPECT_EQ(left.ShapeOf(layer).feed_forward % 8, 0);
        EXPECT_EQ(left.ShapeOf(layer).heads, 2 * left.ShapeOf(layer).kv_heads);
        EXPECT_GE(left.ShapeOf(layer).kv_heads, 1);
      }
      EXPECT_TRUE(!even || left.layer_shapes.empty());
    }
  }
}

// What is said to be enough is enough, and one unit less an event is not, where kinds shrink alike.
TEST(PlannedSizeTest, ReachIsWhatTheRampReaches) {
  const ModelSpec model = SmallModel();
  const UnitTable table(model);
  std::vector<double> scores;
  for (const UnitSet& set : table.sets()) {
    for (int64_t i = 1; i <= set.count; ++i) {
      scores.push_back(static_cast<double>(i) / static_cast<double>(set.count));
    }
  }
  const Timeline timeline = {.steps = 40, .tokens_per_step = 1};
  for (const int64_t interval : {1, 2, 5, 10}) {
    for (const SparsityCurve curve : {SparsityCurve::kLinear, SparsityCurve::kCubic}) {
      SCOPED_TRACE(std::to_string(interval));
      PruningSpec spec = SpecOf(CountParameters(model) / 2);
      for (PruningSpec::Kind& kind : spec.kinds) kind.alignment = 1;
      spec.even_layers = false;  // each unit counts by itself
      spec.interval = interval;
      spec.curve = curve;
      spec.units_per_event = 1;
      const RampReach slow = ReachOf(model, spec, timeline, UnitOrder::kInProportion);
      EXPECT_EQ(slow.events, (40 - std::max<int64_t>(2, interval)) / interval + 1);
      EXPECT_FALSE(slow.reached());
      EXPECT_LT(slow.removed, slow.events);
      for (const int64_t fewer : {0, 1}) {
        spec.units_per_event = slow.units_per_event - fewer;
        EXPECT_EQ(ReachOf(model, spec, timeline, UnitOrder::kInProportion).reached(), fewer == 0);
        // The last event finds nothing left to do.
        const ModelSpec left = RunRamp(model, spec, scores, 40 - interval);
        EXPECT_EQ(CountParameters(left) <= spec.target_parameters, fewer == 0)
            << CountParameters(left) << " by " << spec.units_per_event;
      }
    }
  }
}

TEST(ChooseUnitsTest, TakesTheLowestOfAllKindsAndKeepsTheFloors) {
  const ModelSpec model = SmallModel();
  const UnitTable table(model);
  PruningSpec spec = SpecOf(1);
  spec.even_layers = false;
  for (auto& kind : spec.kinds) kind.alignment = 1;
  spec.kinds[static_cast<size_t>(UnitKind::kAttention)].minimum = 3;
  spec.kinds[static_cast<size_t>(UnitKind::kStem)].enabled = false;
  std::vector<double> scores(static_cast<size_t>(table.unit_count()), 1.0);
  const std::vector<bool> stays(scores.size(), true);
  // Three heads of layer 1 are the lowest, then a channel of layer 2, then a stem channel.
  for (int64_t i = 0; i < 3; ++i) scores[static_cast<size_t>(table.sets()[2].first + i)] = 0.1;
  scores[static_cast<size_t>(table.sets()[5].first + 7)] = 0.2;
  scores[static_cast<size_t>(table.sets()[6].first)] = 0.15;
  spec.units_per_event = 2;
  EXPECT_THAT(ChooseUnits(model, table, scores, stays, spec, 1, false),
              ::testing::ElementsAre(table.sets()[2].first, table.sets()[5].first + 7));
}

TEST(SecondOrderTest, TheRestTakesOverByLeastSquares) {
  constexpr int64_t kRows = 5, kColumns = 12, kTokens = 60, kPitch = 13, kDead = 9;
  // Inputs that depend on each other, one column of them removed before.
  std::vector<float> x(kTokens * kColumns), weight(kRows * kPitch), gram(kColumns * kColumns);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t c = 0; c < kColumns; ++c) {
      const double own = RandomNormal(1, 1, t * kColumns + c), shared = RandomNormal(1, 2, t);
      x[t * kColumns + c] = c == kDead ? 0.0f : static_cast<float>(own + 2 * shared);
    }
  }
  for (int64_t i = 0; i < kColumns * kColumns; ++i) {
    for (int64_t t = 0; t < kTokens; ++t) {
      gram[i] += x[t * kColumns + i / kColumns] * x[t * kColumns + i % kColumns];
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) {
      weight[r * kPitch + c] =
          c == kDead ? 0.0f : static_cast<float>(RandomNormal(1, 3, r * kColumns + c));
    }
  }
  const std::vector<int64_t> gone = {2, 7};
  const auto error = [&](const std::vector<float>& changed) {
    double sum = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) {
        double difference = 0;
        for (int64_t c = 0; c < kColumns; ++c) {
          const bool left = c != gone[0] && c != gone[1];
          difference += x[t * kColumns + c] *
                        ((left ? changed[r * kPitch + c] : 0.0) - weight[r * kPitch + c]);
        }
        sum += difference * difference;
      }
    }
    return sum;
  };
  std::vector<float> updated = weight;
  ASSERT_TRUE(CompensateColumns(updated, kRows, kPitch, 0, gram, kColumns, gone, 1e-6));
  EXPECT_LT(error(updated), 0.3 * error(weight));
  for (int64_t r = 0; r < kRows; ++r) EXPECT_EQ(updated[r * kPitch + kDead], 0.0f);
  // It is the minimum: no column that stays gains by moving.
  for (int64_t c = 0; c < kColumns; ++c) {
    if (c == gone[0] || c == gone[1]) continue;
    for (const float step : {-0.01f, 0.01f}) {
      std::vector<float> moved = updated;
      moved[2 * kPitch + c] += step;
      EXPECT_GE(error(moved), error(updated) * (1 - 1e-9)) << c;
    }
  }
  EXPECT_FALSE(CompensateColumns(updated, kRows, kPitch, 0, std::vector<float>(kColumns * kColumns),
                                 kColumns, gone, 0.1));
  // The same where the column that was removed before is stored no more, at any damping.
  constexpr int64_t kLeft = kColumns - 1;
  const auto stored = [](int64_t c) { return c < kDead ? c : c + 1; };
  std::vector<float> damped = weight, narrow(kRows * kLeft), narrow_gram(kLeft * kLeft);
  for (int64_t i = 0; i < kRows * kLeft; ++i) {
    narrow[i] = weight[i / kLeft * kPitch + stored(i % kLeft)];
  }
  for (int64_t i = 0; i < kLeft * kLeft; ++i) {
    narrow_gram[i] = gram[stored(i / kLeft) * kColumns + stored(i % kLeft)];
  }
  ASSERT_TRUE(CompensateColumns(damped, kRows, kPitch, 0, gram, kColumns, gone, 0.5));
  ASSERT_TRUE(CompensateColumns(narrow, kRows, kLeft, 0, narrow_gram, kLeft, gone, 0.5));
  for (int64_t i = 0; i < kRows * kLeft; ++i) {
    EXPECT_EQ(narrow[i], damped[i / kLeft * kPitch + stored(i % kLeft)]) << "cell " << i;
  }
}

TEST(SmoothTest, OutliersCountForNoMoreThanTheirFactor) {
  PruningProgress progress;
  progress.smoothed.assign(2 * kSmoothed, 0.0);
  const auto batch = [](double size) {
    return SaliencyBatch{.units = {{.gate = size, .gate_squares = size * size},
                                   {.gate = -size, .gate_squares = size * size}}};
  };
  for (int i = 0; i < 5; ++i) Smooth(batch(1), 0.5, 3, &progress);
  EXPECT_DOUBLE_EQ(progress.smoothed[0], 1);
  Smooth(batch(1000), 0.5, 3, &progress);
  EXPECT_DOUBLE_EQ(progress.smoothed[0], 2);  // the mean of 1 and 3
  EXPECT_DOUBLE_EQ(progress.smoothed[1], 5);
  const PruningProgress before = progress;
  Smooth(batch(std::nan("")), 0.5, 3, &progress);
  EXPECT_EQ(progress, before);
}

// What goes next must not depend on whether what went before is still stored as zeros.
TEST(SaliencyScoresTest, AreTheSameBeforeAndAfterCompaction) {
  const ModelSpec model = SmallModel();
  const UnitTable table(model);
  PruningProgress before;
  std::vector<bool> removed;
  for (const UnitSet& set : table.sets()) {
    for (int64_t i = 0; i < set.count; ++i) {
      // Half of the stem, a third of the channels, a head of each layer.
      const bool gone = set.kind == UnitKind::kAttention     ? i == 1
                        : set.kind == UnitKind::kFeedForward ? i % 3 == 0
                                                             : i % 2 == 0;
      removed.push_back(gone);
      before.zero_at.push_back(gone ? 5 : kUnitStays);
      for (int64_t k = 0; k < kSmoothed; ++k) {
        before.smoothed.push_back(1.0 + 0.37 * static_cast<double>((set.first + i) % 11 + k));
      }
    }
  }
  const Compaction compaction = PlanCompaction(model, table, removed, SpecOf(1000));
  ASSERT_EQ(compaction.model.width, model.width / 2);
  const UnitTable smaller(compaction.model);
  PruningProgress after;
  std::vector<double> w_squares(removed.size(), 0.75), kept_squares;
  const std::vector<int64_t> kept = compaction.KeptUnits(table);
  for (const int64_t unit : kept) {
    const auto smoothed = before.smoothed.begin() + unit * kSmoothed;
    after.zero_at.push_back(before.zero_at[static_cast<size_t>(unit)]);
    after.smoothed.insert(after.smoothed.end(), smoothed, smoothed + kSmoothed);
    kept_squares.push_back(w_squares[static_cast<size_t>(unit)]);
  }
  for (const SaliencyCriterion& criterion : SaliencyCriteria()) {
    const std::vector<double> larger = SaliencyScores(criterion, table, before, w_squares, 64);
    const std::vector<double> found = SaliencyScores(criterion, smaller, after, kept_squares, 64);
    for (size_t i = 0; i < kept.size(); ++i) {
      EXPECT_EQ(found[i], larger[static_cast<size_t>(kept[i])]) << criterion.name << " unit " << i;
    }
  }
}

}  // namespace
}  // namespace filigree
