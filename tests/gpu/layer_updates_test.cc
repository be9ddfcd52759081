// Training steps on the GPU with the state in fewer bytes and with per-layer updates: the same bits
// as updates after the whole backward pass, and losses that follow fp32 state.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/small_model.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSequences = 4;
constexpr int64_t kSeqLen = 128;

RunSpec SmallRun(ModelFamily family, StateFormat state, bool per_layer) {
  RunSpec run;
  run.model = SmallGpuModel(family, /*layers=*/3, kSeqLen);
  run.deterministic = true;
  SparsitySpec sparsity;
  sparsity.include = {"layers.*"};
  sparsity.parameterisation = "sparse_plus_low_rank";
  sparsity.sparsity = 0.9;
  sparsity.rank = 64;
  PhaseSpec phase;
  phase.steps = 30;
  phase.batch = {.seq_len = kSeqLen,
                 .tokens_per_step = kSequences * kSeqLen,
                 .micro_batch_sequences = kSequences};
  phase.optimizer.clip_norm = 0;
  phase.optimizer.beta2 = 0.999;
  phase.optimizer.state = state;
  phase.optimizer.per_layer = per_layer;
  phase.sparsity = {sparsity};
  // One bucket a unit in both runs: where the places of a group's parts differ, so may the
  // products' kernels.
  run.bucket_megabytes = 100;
  run.phases = {phase};
  return run;
}

class GpuLayerUpdatesTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    gpu().set_deterministic(true);
    for (int64_t i = 0; i < kSequences * kSeqLen + 1; ++i) {
      text_.push_back(static_cast<int32_t>(i % 16 * (i % 3 + 1)));
    }
  }
  void TearDown() override {
    if (!IsSkipped()) gpu().set_deterministic(false);
  }

  struct Trained {
    std::vector<double> losses;
    std::vector<std::vector<std::byte>> state;  // master, m and v of every parameter
    std::vector<std::string> names;             // of the arrays of `state`
    size_t gradient_bytes = 0;
  };
  Trained Train(const RunSpec& run) {
    const auto communicator = MakeSingleProcessCommunicator();
    TrainingState state(run, 0, {}, *communicator, gpu(), stream());
    state.InitializeValues(stream());
    const PhaseSpec& phase = run.phases[0];
    TrainStep step(phase.batch, gpu(), stream());
    const StepSamples samples = {.tokens = text_.data(),
                                 .targets = text_.data() + 1,
                                 .sequences = kSequences,
                                 .valid_tokens = kSequences * kSeqLen};
    Trained trained;
    for (int64_t i = 1; i <= phase.steps; ++i) {
      const StepResult result = step.Run(state, samples, phase.optimizer, 3e-3, i);
      EXPECT_FALSE(result.update.skipped || result.update.spoiled);
      trained.losses.push_back(result.loss_sum / samples.valid_tokens);
    }
    for (size_t p = 0; p < state.parameters().size(); ++p) {
      for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
        trained.state.push_back(
            GatherSegment(state.buffer(), static_cast<int>(p), kind, *communicator, stream()));
        trained.names.push_back(state.parameters()[p].name + ", array " +
                                std::to_string(static_cast<int>(kind)));
      }
    }
    trained.gradient_bytes = state.buffer().grads().bytes();
    return trained;
  }

  // Names the parameter, the array and the first place where the bits part.
  static void ExpectSameState(const Trained& layers, const Trained& whole) {
    ASSERT_EQ(layers.state.size(), whole.state.size());
    for (size_t i = 0; i < whole.state.size(); ++i) {
      const auto [ours, theirs] = std::ranges::mismatch(layers.state[i], whole.state[i]);
      EXPECT_TRUE(ours == layers.state[i].end() && theirs == whole.state[i].end())
          << whole.names[i] << ", byte " << ours - layers.state[i].begin() << " of "
          << whole.state[i].size();
    }
  }

  std::vector<int32_t> text_;
};

TEST_F(GpuLayerUpdatesTest, TheSameBitsInEveryFormOfTheState) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    std::vector<double> last;
    for (const StateFormat& format :
         {StateFormat{}, StateFormat{.bf16 = true}, StateFormat{.eight_bit_moments = true},
          StateFormat{.bf16 = true, .eight_bit_moments = true}}) {
      SCOPED_TRACE(testing::Message()
                   << "bf16 " << format.bf16 << ", 8-bit " << format.eight_bit_moments);
      const Trained whole = Train(SmallRun(family, format, false));
      const Trained layers = Train(SmallRun(family, format, true));
      EXPECT_EQ(layers.losses, whole.losses);
      ExpectSameState(layers, whole);
      if (family == ModelFamily::kLlama) {
        EXPECT_LT(2 * layers.gradient_bytes, whole.gradient_bytes);
      }
      EXPECT_LT(whole.losses.back(), 0.5 * whole.losses.front());
      last.push_back(whole.losses.back());
    }
    for (size_t form = 1; form < last.size(); ++form) EXPECT_NEAR(last[form], last[0], 0.15);
  }
}

}  // namespace
}  // namespace filigree
