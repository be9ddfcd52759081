// What a configuration may not ask of pruning, and the sizes between which a ramp ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "tests/unit/pruning_ramp_testing.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/size_bounds.h"
#include "trainer/pruning/validate.h"

namespace filigree {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kNames[] = {"shrink", "again", "last"};

// A phase for each `spec`, of 100 steps.
RunSpec RunOf(const ModelSpec& model, const std::vector<PruningSpec>& specs) {
  RunSpec run;
  run.model = model;
  for (const PruningSpec& spec : specs) {
    PhaseSpec phase;
    phase.name = kNames[run.phases.size()];
    phase.steps = 100;
    phase.batch = {.seq_len = 8, .tokens_per_step = 8, .micro_batch_sequences = 1};
    phase.pruning = spec;
    run.phases.push_back(phase);
  }
  return run;
}

std::string ProblemsOf(const RunSpec& run) {
  const Status status = ValidatePruning(run);
  return status.ok() ? "" : status.message();
}

std::string ProblemsOf(const ModelSpec& model, const PruningSpec& spec, DType wire = DType::kF32) {
  RunSpec run = RunOf(model, {spec});
  run.wire_dtype = wire;
  return ProblemsOf(run);
}

PruningSpec::Kind& KindOf(PruningSpec& spec, UnitKind kind) {
  return spec.kinds[static_cast<size_t>(kind)];
}

TEST(ValidatePruningTest, WhatCannotComeOutIsRefused) {
  const ModelSpec model = SmallModel();
  const int64_t parameters = CountParameters(model);
  EXPECT_EQ(ProblemsOf(model, SpecOf(parameters / 2)), "");
  EXPECT_THAT(ProblemsOf(model, SpecOf(parameters)), HasSubstr("is not below the"));

  PruningSpec floors = SpecOf(parameters / 2);
  floors.kinds[static_cast<size_t>(UnitKind::kFeedForward)].minimum = 41;
  floors.kinds[static_cast<size_t>(UnitKind::kStem)].minimum = 30;
  EXPECT_THAT(ProblemsOf(model, floors), HasSubstr("below the floors"));

  PruningSpec slow = SpecOf(parameters / 2);
  slow.units_per_event = 1;
  slow.interval = 10;
  const std::string told = ProblemsOf(model, slow);
  EXPECT_THAT(told, HasSubstr("units_per_event = 1 removes 9 units in the phase's 10 events"));
  const size_t mend = told.find("raise units_per_event to ");
  ASSERT_NE(mend, std::string::npos) << told;
  slow.units_per_event = std::stoll(told.substr(mend + sizeof("raise units_per_event to")));
  EXPECT_EQ(ProblemsOf(model, slow), "");

  for (const UnitKind kind : {UnitKind::kAttention, UnitKind::kFeedForward, UnitKind::kStem}) {
    PruningSpec keeps = SpecOf(parameters / 2);
    PruningSpec::Kind& units = keeps.kinds[static_cast<size_t>(kind)];
    units.minimum = 1000;
    EXPECT_THAT(ProblemsOf(model, keeps),
                HasSubstr(std::string(NameOf(kind)) + ".minimum = 1000 is more than the"));
    units.enabled = false;
    EXPECT_THAT(ProblemsOf(model, keeps), Not(HasSubstr("minimum")));
  }
  PruningSpec rounded = SpecOf(parameters / 2);
  rounded.kinds[static_cast<size_t>(UnitKind::kFeedForward)] = {.minimum = 33, .alignment = 32};
  EXPECT_THAT(ProblemsOf(model, rounded),
              HasSubstr("feed_forward.minimum = 33 is 64 when rounded up to alignment = 32"));

  PruningSpec late = SpecOf(parameters / 2);
  late.clock = Clock::kSteps;
  late.begin = 50;
  late.end = 150;
  EXPECT_THAT(ProblemsOf(model, late),
              HasSubstr("ends at step 150 and needs 1 more to finish, of a phase of 100"));
  late.end = 100;  // no event is left in which to finish
  EXPECT_THAT(ProblemsOf(model, late), HasSubstr("ends at step 100 and needs 1 more"));
  late.end = 99;
  EXPECT_EQ(ProblemsOf(model, late), "");

  // The phase's first event finds no scores and its second is its last.
  PruningSpec early = SpecOf(parameters / 2);
  early.clock = Clock::kSteps;
  early.begin = early.end = 0;
  early.interval = 100;
  EXPECT_THAT(ProblemsOf(model, early), HasSubstr("ends at step 100 and needs 100 more"));
  early.interval = 50;
  EXPECT_EQ(ProblemsOf(model, early), "");

  // The sums over ranks lie in the wire's buffer then, and scores are read from the gradients'.
  EXPECT_THAT(ProblemsOf(model, SpecOf(parameters / 2), DType::kBF16), HasSubstr("wire_dtype"));

  EXPECT_THAT(ProblemsOf(SmallModel(ModelFamily::kGpt2), SpecOf(10000)),
              HasSubstr("cannot remove stem channels"));
}

// Layer 1 has a key-value head and 20 channels less than the others.
ModelSpec UnevenModel() {
  ModelSpec model = SmallModel();
  model.layer_shapes.assign(3, {.heads = 8, .kv_heads = 4, .feed_forward = 48});
  model.layer_shapes[1] = {.heads = 6, .kv_heads = 3, .feed_forward = 28};
  return model;
}

TEST(ValidatePruningTest, EveryLayerCounts) {
  const ModelSpec model = UnevenModel();
  const int64_t parameters = CountParameters(model);
  EXPECT_EQ(ProblemsOf(model, SpecOf(parameters / 2)), "");
  PruningSpec spec = SpecOf(parameters - 1);
  KindOf(spec, UnitKind::kFeedForward).minimum = 29;
  EXPECT_EQ(
      ProblemsOf(model, spec),
      "phase shrink: pruning feed_forward.minimum = 29 is more than the 28 there are in layer "
      "1; lower it or set enabled: false");
  KindOf(spec, UnitKind::kFeedForward).minimum = 28;
  EXPECT_THAT(ProblemsOf(model, spec),
              HasSubstr("feed_forward.minimum = 28 is 32 when rounded up to alignment = 8, more "
                        "than the 28 there are in layer 1"));
  KindOf(spec, UnitKind::kFeedForward).minimum = 1;
  KindOf(spec, UnitKind::kAttention).alignment = 4;
  EXPECT_THAT(ProblemsOf(model, spec),
              HasSubstr("attention.alignment = 4 is more than the 3 there are in layer 1"));
  KindOf(spec, UnitKind::kAttention).enabled = false;
  EXPECT_EQ(ProblemsOf(model, spec), "");
}

// Only feed-forward channels may go, all layers alike: what is left is known to the channel.
PruningSpec ChannelsOnly(int64_t target) {
  PruningSpec spec = SpecOf(target);
  KindOf(spec, UnitKind::kAttention).enabled = KindOf(spec, UnitKind::kStem).enabled = false;
  return spec;
}

TEST(ValidatePruningTest, ALaterPhaseIsHeldAgainstWhatEarlierOnesLeave) {
  const ModelSpec model = SmallModel();
  const int64_t parameters = CountParameters(model), channel = 3 * 3 * 32;  // of all layers
  const int64_t first = parameters - 17 * channel;  // 31 channels: 24 of them are aligned
  EXPECT_EQ(ProblemsOf(RunOf(model, {SpecOf(first), SpecOf(first / 2)})), "");
  // The target of the phase before is the most that it leaves.
  EXPECT_EQ(ProblemsOf(RunOf(model, {SpecOf(first), SpecOf(first)})),
            "phase again: pruning target_parameters = " + std::to_string(first) +
                " is not below the " + std::to_string(first) +
                " that the phases before leave at most; lower it");
  EXPECT_EQ(ProblemsOf(RunOf(model, {SpecOf(first), SpecOf(first - 1)})), "");

  PruningSpec again = ChannelsOnly(first - 10 * channel);
  KindOf(again, UnitKind::kFeedForward) = {.minimum = 25, .alignment = 1};
  EXPECT_EQ(ProblemsOf(RunOf(model, {ChannelsOnly(first), again})),
            "phase again: pruning feed_forward.minimum = 25 is more than the 24 that the phases "
            "before can leave; lower it or set enabled: false");
  KindOf(again, UnitKind::kFeedForward) = {.minimum = 1, .alignment = 25};
  EXPECT_THAT(ProblemsOf(RunOf(model, {ChannelsOnly(first), again})),
              HasSubstr("feed_forward.alignment = 25 is more than the 24 that"));
  KindOf(again, UnitKind::kFeedForward) = {.minimum = 13, .alignment = 13};
  EXPECT_EQ(ProblemsOf(RunOf(model, {ChannelsOnly(first), again})), "");
  KindOf(again, UnitKind::kFeedForward).minimum = 14;
  EXPECT_THAT(ProblemsOf(RunOf(model, {ChannelsOnly(first), again})),
              HasSubstr("feed_forward.minimum = 14 is 26 when rounded up to alignment = 13, more "
                        "than the 24 that the phases before can leave"));
  // Where scores may spare the channels it is for the phase's start to say.
  KindOf(again, UnitKind::kFeedForward) = {.minimum = 25, .alignment = 1};
  EXPECT_EQ(ProblemsOf(RunOf(model, {SpecOf(first), again})), "");

  // What an earlier phase keeps, a later one that may not touch it keeps too.
  PruningSpec heads = SpecOf(parameters / 4);
  KindOf(heads, UnitKind::kFeedForward).enabled = KindOf(heads, UnitKind::kStem).enabled = false;
  EXPECT_THAT(ProblemsOf(RunOf(model, {ChannelsOnly(first), heads})),
              HasSubstr("phase again: pruning target_parameters = " +
                        std::to_string(parameters / 4) + " is below the floors"));

  // A phase that may end above its target says nothing of the sizes of the next.
  PruningSpec slow = SpecOf(first);
  slow.interval = 10;
  const Timeline timeline = {.steps = 100, .tokens_per_step = 8};
  slow.units_per_event = ReachOf(model, slow, timeline, UnitOrder::kSmallestFirst).units_per_event;
  EXPECT_THAT(ProblemsOf(RunOf(model, {slow, SpecOf(first)})), HasSubstr("is not below the"));
  --slow.units_per_event;
  EXPECT_EQ(ProblemsOf(RunOf(model, {slow, SpecOf(first)})), "");

  // Phase after phase; one that is refused already tells no more than it must.
  EXPECT_THAT(ProblemsOf(RunOf(model, {SpecOf(first), SpecOf(first - 1), SpecOf(first - 1)})),
              HasSubstr("phase last: pruning target_parameters = " + std::to_string(first - 1) +
                        " is not below the " + std::to_string(first - 1)));
  const std::string both = ProblemsOf(RunOf(model, {SpecOf(parameters), SpecOf(first)}));
  EXPECT_THAT(both, HasSubstr("phase shrink"));
  EXPECT_THAT(both, Not(HasSubstr("phase again")));
}

std::string ProblemsFrom(const RunSpec& run, int first, const PruningProgress& progress) {
  const Status status = ValidateSizesFrom(run, first, progress);
  return status.ok() ? "" : status.message();
}

TEST(ValidatePruningTest, OnceSizesAreKnownTheRestIsRefused) {
  ModelSpec model = SmallModel();
  const int64_t parameters = CountParameters(model);
  PruningSpec again = SpecOf(parameters / 3);
  KindOf(again, UnitKind::kStem) = {.minimum = 32, .alignment = 8};
  RunSpec run = RunOf(model, {SpecOf(parameters * 9 / 10), again});
  EXPECT_EQ(ProblemsOf(run), "");
  // The first phase has removed stem channels.
  run.model.width = 24;
  run.model.norm_width = 32;
  PruningProgress progress;
  progress.phase = 0;
  progress.zero_at.assign(static_cast<size_t>(UnitTable(run.model).unit_count()), kUnitStays);
  EXPECT_EQ(ProblemsFrom(run, 1, progress),
            "phase again: pruning stem.minimum = 32 is more than the 24 there are; lower it or set "
            "enabled: false");
  KindOf(*run.phases[1].pruning, UnitKind::kStem).minimum = 8;
  EXPECT_EQ(ProblemsFrom(run, 1, progress), "");
  run.phases[1].pruning->target_parameters = CountParameters(run.model);
  EXPECT_EQ(ProblemsFrom(run, 1, progress),
            "phase again: pruning target_parameters = " +
                std::to_string(CountParameters(run.model)) + " is not below the " +
                std::to_string(CountParameters(run.model)) + " that the model has; lower it");
  // A ramp that has begun may be at its target; one to come is held against it.
  progress.phase = 1;
  EXPECT_EQ(ProblemsFrom(run, 1, progress), "");
  // Units that are zeros still are not there, but their places are.
  const UnitSet stem = UnitTable(run.model).sets().back();
  for (int64_t i = 0; i < 4; ++i) progress.zero_at[static_cast<size_t>(stem.first + i)] = 3;
  progress.phase = 0;
  EXPECT_THAT(ProblemsFrom(run, 1, progress), HasSubstr("that the model has"));
  run.phases[1].pruning->target_parameters = parameters / 3;
  KindOf(*run.phases[1].pruning, UnitKind::kStem) = {.minimum = 20, .alignment = 8};
  EXPECT_EQ(ProblemsFrom(run, 1, progress), "");
  KindOf(*run.phases[1].pruning, UnitKind::kStem).minimum = 21;
  EXPECT_THAT(ProblemsFrom(run, 1, progress), HasSubstr("minimum = 21 is more than the 20"));
}

// Whatever the scores, a ramp ends within its bounds, and so does one after it.
TEST(SizeBoundsTest, EveryRampEndsWithinThem) {
  int known = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const auto draw = [&](uint64_t stream, int64_t choices) {
      return static_cast<int64_t>(RandomUniform(seed, stream, 0) * static_cast<double>(choices));
    };
    ModelSpec model = draw(1, 3) == 0 ? UnevenModel() : SmallModel();
    SizeBounds bounds = KnownSizes(model);
    for (uint64_t part = 0; part < 2; ++part) {
      const uint64_t base = 10 + 20 * part;
      PruningSpec spec;
      for (uint64_t kind = 0; kind < kUnitKinds; ++kind) {
        const int64_t alignments[] = {1, 2, 3, 8};
        spec.kinds[kind] = {
            .enabled = draw(base + kind, 3) > 0,
            .minimum = 1 + draw(base + 3 + kind, kind == 0 ? 2 : 16),
            .alignment = kind == 0 ? 1 + draw(base + 6, 2) : alignments[draw(base + 6 + kind, 4)]};
      }
      spec.even_layers = draw(base + 10, 2) == 0;
      const int64_t parameters = CountParameters(model);
      const int64_t floor = FloorParameters(KnownSizes(model), spec);
      if (floor >= parameters - 1) continue;
      spec.target_parameters = floor + 1 + draw(base + 11, parameters - floor - 2);
      PhaseSpec phase;
      phase.steps = 40;
      phase.batch = {.seq_len = 1, .tokens_per_step = 1, .micro_batch_sequences = 1};
      phase.pruning = spec;
      bounds = BoundsAfter(bounds, phase);
      std::vector<double> scores;
      for (int64_t unit = 0; unit < UnitTable(model).unit_count(); ++unit) {
        scores.push_back(RandomUniform(seed, base + 12, static_cast<uint64_t>(unit)));
      }
      model = RunRamp(model, spec, scores, 200);
      EXPECT_LE(CountParameters(model), bounds.parameters);
      const UnitTable left(model);
      for (size_t i = 0; i < bounds.least.size(); ++i) {
        const UnitSet& set = left.sets()[i];
        EXPECT_LE(bounds.least[i], set.count) << NameOf(set.kind) << " of layer " << set.layer;
        EXPECT_GE(bounds.most[i], set.count) << NameOf(set.kind) << " of layer " << set.layer;
      }
      known += bounds.least == bounds.most;
    }
  }
  EXPECT_GT(known, 20);  // bounds that are no guess, of one kind of unit
}

}  // namespace
}  // namespace filigree
