// Compaction is exact: a state whose removed units are zero, and the smaller one made from it, have
// the same loss and take the same steps, moments included. Runs under mpirun at several numbers of
// ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "tests/unit/pruning_testing.h"
#include "trainer/pruning/compaction.h"
#include "trainer/unit_arrays.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 8, kVocabulary = 31;
constexpr double kRate = 0.01;

using Trainee = PruningTrainee;

struct Case {
  const char* name;
  ModelFamily family = ModelFamily::kLlama;
  bool tied_head = false;
  Recompute recompute = Recompute::kNone;
  int64_t stem_alignment = 1, channel_alignment = 1;
};

RunSpec RunOf(const Case& c, int zero_stage) {
  RunSpec run;
  run.seed = 5;
  run.zero_stage = zero_stage;
  run.bucket_megabytes = 0.01;
  run.model = {.family = c.family,
               .layers = 3,
               .width = 24,
               .heads = c.family == ModelFamily::kLlama ? 6 : 3,
               .kv_heads = 3,
               .head_size = c.family == ModelFamily::kLlama ? 4 : 8,
               .feed_forward = 37,
               .vocab_size = kVocabulary,
               .padded_vocab_size = 32,
               .max_positions = kSeqLen,
               .tied_head = c.tied_head,
               .init_std = 0.2,
               .recompute = c.recompute};
  PhaseSpec phase;
  phase.name = "only";
  phase.steps = 10;
  phase.batch = {.seq_len = kSeqLen, .tokens_per_step = 64, .micro_batch_sequences = 1};
  // AdamW divides by the root of the second moment: of a gradient of nearly nothing it would make a
  // whole step of what rounding left in it.
  phase.optimizer.epsilon = 1e-3;
  PruningSpec pruning;
  pruning.kinds[static_cast<size_t>(UnitKind::kStem)].alignment = c.stem_alignment;
  pruning.kinds[static_cast<size_t>(UnitKind::kFeedForward)].alignment = c.channel_alignment;
  phase.pruning = pruning;
  run.phases = {phase};
  return run;
}

// Uneven between layers: a head of layer 1, some channels of each layer, some of the stem.
std::vector<bool> RemovedUnits(const UnitTable& table) {
  std::vector<bool> removed(static_cast<size_t>(table.unit_count()), false);
  for (const UnitSet& set : table.sets()) {
    for (int64_t i = 0; i < set.count; ++i) {
      const bool gone = set.kind == UnitKind::kAttention ? set.layer == 1 && i == 1
                        : set.kind == UnitKind::kStem    ? i % 5 == 2
                                                         : i % (set.layer + 2) == 1;
      removed[static_cast<size_t>(set.first + i)] = gone;
    }
  }
  return removed;
}

class CompactionTest : public ::testing::TestWithParam<Case> {};

void ExpectRemovedCellsAreZero(Trainee& trainee, const UnitTable& table,
                               const std::vector<bool>& removed) {
  for (size_t p = 0; p < trainee.state().parameters().size(); ++p) {
    const Parameter& parameter = trainee.state().parameters()[p];
    for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      const std::vector<float> values = trainee.Gather(static_cast<int>(p), kind);
      for (int64_t unit = 0; unit < table.unit_count(); ++unit) {
        if (!removed[static_cast<size_t>(unit)]) continue;
        for (const UnitMember& member : MembersOf(table, unit)) {
          if (member.parameter != parameter.name) continue;
          const int64_t pitch = parameter.layout.row_pitch();
          const int64_t rows = member.rows ? member.count : parameter.layout.out();
          const int64_t columns = member.rows ? parameter.layout.in() : member.count;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < columns; ++c) {
              const int64_t row = member.rows ? member.begin + r : r;
              const int64_t column = member.rows ? c : member.begin + c;
              ASSERT_EQ(values[row * pitch + column], 0.0f) << parameter.name << " unit " << unit;
            }
          }
        }
      }
    }
  }
}

// For each stored slot of `to` the slot of `from` that it comes from; -1 where it is padding.
std::vector<int64_t> CompactSlots(const SparseLayout& from, const SparseLayout& to,
                                  const KeptCells& kept) {
  CHECK_EQ(to.out(), static_cast<int64_t>(kept.rows.size()));
  CHECK_EQ(to.in(), static_cast<int64_t>(kept.columns.size()));
  std::vector<int64_t> slot_of(static_cast<size_t>(from.logical_count()), -1);
  const std::vector<int64_t> before = from.LogicalIndices();
  for (size_t slot = 0; slot < before.size(); ++slot) {
    if (before[slot] >= 0) slot_of[before[slot]] = static_cast<int64_t>(slot);
  }
  std::vector<int64_t> sources = to.LogicalIndices();
  for (int64_t& source : sources) {
    if (source < 0) continue;
    const int64_t row = kept.rows[source / to.in()], column = kept.columns[source % to.in()];
    source = slot_of[row * from.in() + column];
  }
  return sources;
}

// Every cell that stays, in master and moments, as the larger state has it; `tolerance` is relative
// to the largest of the array (or a floor: k's bias has gradients of nothing but rounding).
void ExpectSameCells(Trainee& larger, Trainee& smaller, const UnitTable& table,
                     const Compaction& compaction, double tolerance) {
  for (size_t p = 0; p < larger.state().parameters().size(); ++p) {
    const Parameter& from = larger.state().parameters()[p];
    const Parameter& to = smaller.state().parameters()[p];
    ASSERT_EQ(from.name, to.name);
    const std::vector<int64_t> slots =
        CompactSlots(from.layout, to.layout, KeptCellsOf(from, table, compaction));
    for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      const int index = static_cast<int>(p);
      const auto before = larger.Gather(index, kind), after = smaller.Gather(index, kind);
      float largest = kind == StateKind::kMaster ? static_cast<float>(kRate) : 1e-4f;
      for (const float value : before) largest = std::max(largest, std::abs(value));
      for (size_t slot = 0; slot < slots.size(); ++slot) {
        const float expected = slots[slot] < 0 ? 0.0f : before[slots[slot]];
        ASSERT_NEAR(after[slot], expected, tolerance * largest)
            << to.name << " array " << static_cast<int>(kind) << " slot " << slot;
      }
    }
  }
}

void CheckCase(const Case& c, Communicator& world, int zero_stage, int64_t row_alignment) {
  SCOPED_TRACE(std::string(c.name) + ", ZeRO-" + std::to_string(zero_stage) + ", rows of " +
               std::to_string(row_alignment));
  RunSpec run = RunOf(c, zero_stage);
  Trainee larger(run, world, row_alignment);
  larger.state().InitializeValues(larger.stream());
  for (int64_t step = 0; step < 3; ++step) larger.Step(kRate, step);

  const UnitTable table(run.model);
  const std::vector<bool> removed = RemovedUnits(table);
  std::vector<float> factors;
  for (const bool gone : removed) factors.push_back(gone ? 0.0f : 1.0f);
  ScaleUnits(larger.state(), table, factors, larger.backend(), larger.stream());
  const double masked_loss = larger.Step(kRate, 3);
  EXPECT_GT(masked_loss, 0);
  ExpectRemovedCellsAreZero(larger, table, removed);

  const Compaction compaction = PlanCompaction(run.model, table, removed, *run.phases[0].pruning);
  EXPECT_LT(compaction.model.ShapeOf(1).kv_heads, run.model.kv_heads);
  if (c.family == ModelFamily::kLlama) {
    EXPECT_LT(compaction.model.width, run.model.width);
    EXPECT_EQ(compaction.model.norm_width, run.model.width);
  }
  run.model = compaction.model;
  Trainee smaller(run, world, row_alignment);
  smaller.state().TakeOver(larger.state(), table, compaction, smaller.stream());
  ExpectSameCells(larger, smaller, table, compaction, /*tolerance=*/0);
  for (int64_t step = 4; step < 7; ++step) {
    const double expected = larger.Step(kRate, step), found = smaller.Step(kRate, step);
    EXPECT_NEAR(found, expected, 2e-6 * expected) << "step " << step;
    ExpectRemovedCellsAreZero(larger, table, removed);
    if (::testing::Test::HasFatalFailure()) return;
  }
  ExpectSameCells(larger, smaller, table, compaction, /*tolerance=*/2e-5);
}

TEST_P(CompactionTest, LossMomentsAndNextStepsAgree) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  CheckCase(GetParam(), *world, 1, 1);
  CheckCase(GetParam(), *world, 0, 1);
  CheckCase(GetParam(), *world, 1, 8);  // padded feed-forward widths
}

INSTANTIATE_TEST_SUITE_P(
    Models, CompactionTest,
    ::testing::Values(Case{.name = "llama"}, Case{.name = "llama_tied", .tied_head = true},
                      Case{.name = "llama_recompute_layer", .recompute = Recompute::kLayer},
                      Case{.name = "llama_recompute_activations",
                           .recompute = Recompute::kActivations},
                      Case{.name = "llama_aligned", .stem_alignment = 4, .channel_alignment = 8},
                      Case{.name = "gpt2", .family = ModelFamily::kGpt2, .tied_head = true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace filigree
