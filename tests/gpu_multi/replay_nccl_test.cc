// Two ranks, a GPU each: steps of three micro-batches, of which the middle ones come from a
// recording, leave the bits of steps that are launched.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cuda/cuda_factory.h"
#include "tests/gpu/small_model.h"
#include "tests/gpu_multi/nccl_testing.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 128, kMicroBatch = 2, kMicroBatches = 4, kSteps = 6;

class ReplayNcclTest : public NcclTest {
 protected:
  void SetUp() override {
    NcclTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    backend_ = MakeCudaBackend(*device_);
    backend_->set_deterministic(true);
  }

  RunSpec Run(ModelFamily family, int zero_stage) const {
    RunSpec run;
    run.model = SmallGpuModel(family, /*layers=*/3, kSeqLen);
    run.deterministic = true;
    run.zero_stage = zero_stage;
    SparsitySpec blocks;
    blocks.include = {"layers.*"};
    blocks.parameterisation = "block_sparse";
    blocks.sparsity = 0.5;
    blocks.block_out = blocks.block_in = 64;
    PhaseSpec phase;
    phase.steps = kSteps;
    phase.batch = {.seq_len = kSeqLen,
                   .tokens_per_step = comm_->size() * kMicroBatches * kMicroBatch * kSeqLen,
                   .micro_batch_sequences = kMicroBatch};
    phase.sparsity = {blocks};
    run.phases = {phase};
    return run;
  }

  struct Trained {
    std::vector<double> losses;
    std::vector<std::byte> values;
    int64_t replays = 0;
  };
  Trained Train(const RunSpec& run, bool graphs) {
    const PhaseSpec& phase = run.phases[0];
    TrainingState state(run, 0, std::map<std::string, SparseLayout>{}, *comm_, *backend_, *stream_);
    state.InitializeValues(*stream_);
    TrainStep step(phase.batch, *backend_, *stream_);
    if (graphs) step.ReplayPasses();
    Trained trained;
    const int64_t sequences = kMicroBatches * kMicroBatch;
    std::vector<int32_t> tokens(sequences * kSeqLen + 1);
    for (int64_t i = 0; i < kSteps; ++i) {
      for (size_t t = 0; t < tokens.size(); ++t) {
        tokens[t] = static_cast<int32_t>(
            RandomBelow(/*seed=*/5, RngStream("tokens", "", i * comm_->size() + comm_->rank()), t,
                        run.model.vocab_size));
      }
      const StepSamples samples = {
          .tokens = tokens.data(),
          .targets = tokens.data() + 1,
          .sequences = sequences,
          .valid_tokens = static_cast<double>(phase.batch.tokens_per_step)};
      const StepResult result = step.Run(state, samples, phase.optimizer, /*lr=*/1e-3, i + 1);
      EXPECT_FALSE(result.update.skipped);
      trained.losses.push_back(result.loss_sum);
      trained.losses.push_back(result.update.grad_norm);
    }
    state.exchange().WaitAllValues(*stream_);
    const TensorView values = state.buffer().values();
    trained.values.resize(values.bytes());
    device_->CopyAsync(TensorView(trained.values.data(), values.dtype(), {values.size()}), values,
                       *stream_);
    stream_->Synchronize();
    trained.replays = step.replays();
    return trained;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(ReplayNcclTest, StepsAreTheSameBits) {
  for (const ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama}) {
    for (const int zero_stage : {0, 1}) {
      SCOPED_TRACE(testing::Message()
                   << "family " << static_cast<int>(family) << ", ZeRO-" << zero_stage);
      const RunSpec run = Run(family, zero_stage);
      const Trained launched = Train(run, false), replayed = Train(run, true);
      EXPECT_EQ(launched.replays, 0);
      // Two a step are recordable; at least every other step's are replayed once they are known.
      EXPECT_GE(replayed.replays, kSteps);
      EXPECT_EQ(replayed.losses, launched.losses);
      EXPECT_TRUE(replayed.values == launched.values);
    }
  }
}

}  // namespace
}  // namespace filigree
