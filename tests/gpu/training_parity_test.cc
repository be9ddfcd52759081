// Whole training on the GPU in bf16 against the CPU in single precision: 200 sparse steps from the
// same values and samples follow the CPU's losses, and dense fine-tuning starts where they end.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/small_model.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSequences = 2;
constexpr int64_t kSeqLen = 128;  // 256 tokens a step: what the Hopper kernels take, edge included
constexpr int64_t kSparseSteps = 200;
constexpr int64_t kDenseSteps = 20;

struct Case {
  const char* name;
  ModelFamily family;
  const char* parameterisation;
  int block;
  friend void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }
};

RunSpec TwoPhases(const Case& test) {
  RunSpec run;
  run.model = SmallGpuModel(test.family, /*layers=*/2, kSeqLen);
  PhaseSpec phase;
  phase.batch = {.seq_len = kSeqLen,
                 .tokens_per_step = kSequences * kSeqLen,
                 .micro_batch_sequences = kSequences};
  phase.optimizer = {.beta2 = 0.99, .weight_decay = 0.1, .clip_norm = 1.0};
  SparsitySpec sparsity;
  sparsity.include = {"layers.*"};
  sparsity.parameterisation = test.parameterisation;
  sparsity.sparsity = sparsity.parameterisation == "dense" ? 0.0 : 0.75;
  sparsity.block_out = sparsity.block_in = test.block;
  phase.sparsity = {sparsity};
  phase.steps = kSparseSteps;
  run.phases = {phase};
  phase.sparsity = {SparsitySpec{}};
  phase.steps = kDenseSteps;
  run.phases.push_back(phase);
  return run;
}

// A text that can be learnt in part: a token mostly fixes the next one, every eighth is drawn.
std::vector<int32_t> TextOf(int64_t step, int64_t vocab) {
  std::vector<int32_t> text;
  for (int64_t i = 0; i < kSequences * kSeqLen + 1; ++i) {
    const uint64_t bits = RandomBits(5, RngStream("text", "", static_cast<uint64_t>(step)), i);
    const bool drawn = text.empty() || bits % 8 == 0;
    text.push_back(static_cast<int32_t>(drawn ? (bits >> 8) % 64 : (text.back() * 7 + 3) % vocab));
  }
  return text;
}

struct Losses {
  std::vector<double> steps;     // of both phases
  double before = 0, after = 0;  // of one batch, around the change to dense weights
};

Losses Train(const RunSpec& run, Backend& backend, Stream& stream) {
  const auto communicator = MakeSingleProcessCommunicator();
  auto state = std::make_unique<TrainingState>(run, 0, std::map<std::string, SparseLayout>{},
                                               *communicator, backend, stream);
  state->InitializeValues(stream);
  TrainStep step(run.phases[0].batch, backend, stream);
  Losses losses;
  std::vector<int32_t> text;
  const auto samples = [&](int64_t number) {
    text = TextOf(number, run.model.vocab_size);
    return StepSamples{.tokens = text.data(),
                       .targets = text.data() + 1,
                       .sequences = kSequences,
                       .valid_tokens = kSequences * kSeqLen};
  };
  const auto loss_of = [&](const StepResult& result) {
    return result.loss_sum / static_cast<double>(kSequences * kSeqLen);
  };
  const auto train = [&](int phase, int64_t first, double lr) {
    for (int64_t i = 0; i < run.phases[phase].steps; ++i) {
      const StepResult result = step.Run(*state, samples(first + i), run.phases[phase].optimizer,
                                         lr * std::min(1.0, (i + 1) / 40.0), i + 1);
      EXPECT_FALSE(result.update.skipped || result.update.spoiled) << "step " << first + i;
      losses.steps.push_back(loss_of(result));
    }
  };
  train(0, 0, 1e-3);
  losses.before = loss_of(step.Gradients(*state, samples(0)));
  const std::unique_ptr<TrainingState> sparse = std::move(state);
  state = std::make_unique<TrainingState>(run, 1, std::map<std::string, SparseLayout>{},
                                          *communicator, backend, stream);
  state->TakeOver(*sparse, /*keep_moments=*/false, 0, stream);
  losses.after = loss_of(step.Gradients(*state, samples(0)));
  train(1, kSparseSteps, 3e-4);
  return losses;
}

double MeanOver(const std::vector<double>& losses, int64_t first, int64_t count) {
  return std::accumulate(losses.begin() + first, losses.begin() + first + count, 0.0) / count;
}

class GpuTrainingTest : public GpuTest, public ::testing::WithParamInterface<Case> {};

TEST_P(GpuTrainingTest, FollowsTheCpuAndFineTunesDenseWithoutAJump) {
  const RunSpec run = TwoPhases(GetParam());
  const Losses found = Train(run, gpu(), stream());
  CpuDevice host(DType::kF32);
  CpuBackend reference(host);
  const auto host_stream = host.NewStream();
  const Losses expected = Train(run, reference, *host_stream);
  ASSERT_EQ(found.steps.size(), expected.steps.size());
  // Before anything is learnt the two differ by the rounding of one pass. Afterwards roundings
  // steer the updates apart: single steps are noisy, what 20 of them reach together is not.
  EXPECT_NEAR(found.steps[0], expected.steps[0], 2e-3 * expected.steps[0]);
  constexpr int64_t kWindow = 20;
  double worst = 0;
  for (int64_t first = 0; first < kSparseSteps + kDenseSteps; first += kWindow) {
    const double ours = MeanOver(found.steps, first, kWindow);
    const double theirs = MeanOver(expected.steps, first, kWindow);
    worst = std::max(worst, std::abs(ours / theirs - 1));
    EXPECT_NEAR(ours, theirs, 0.02 * theirs) << "steps from " << first;
  }
  EXPECT_LT(MeanOver(found.steps, kSparseSteps - kWindow, kWindow), 0.5 * found.steps[0]);
  // The weights of the sparse phase, zeros filled in: the same function but for rounding.
  EXPECT_NEAR(found.after, found.before, 2e-3 * found.before);
  EXPECT_NEAR(expected.after, expected.before, 1e-5 * expected.before);
  // And the first fine-tuning steps do not lose it.
  EXPECT_LT(MeanOver(found.steps, kSparseSteps, kDenseSteps),
            MeanOver(found.steps, kSparseSteps - kWindow, kWindow) + 0.05);
  std::printf(
      "%s: %.3f -> %.3f (CPU %.3f -> %.3f), means of 20 steps at most %.2f %% apart; dense "
      "phase %.4f -> %.4f, then %.3f (CPU %.3f)\n",
      GetParam().name, found.steps[0], MeanOver(found.steps, kSparseSteps - 20, 20),
      expected.steps[0], MeanOver(expected.steps, kSparseSteps - 20, 20), 100 * worst, found.before,
      found.after, MeanOver(found.steps, kSparseSteps, kDenseSteps),
      MeanOver(expected.steps, kSparseSteps, kDenseSteps));
}

INSTANTIATE_TEST_SUITE_P(
    Structures, GpuTrainingTest,
    ::testing::Values(Case{"LlamaDense", ModelFamily::kLlama, "dense", 64},
                      Case{"Gpt2Blocks64", ModelFamily::kGpt2, "block_sparse", 64},
                      Case{"LlamaBlocks64", ModelFamily::kLlama, "block_sparse", 64},
                      Case{"Gpt2Blocks32", ModelFamily::kGpt2, "block_sparse", 32},
                      Case{"LlamaMasked", ModelFamily::kLlama, "masked", 64}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace filigree
