// Recordings that fail: what was called to be recorded is launched.
#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/small_model.h"
#include "trainer/batch_feeder.h"
#include "trainer/read_floats.h"
#include "trainer/replayed_passes.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSequences = 4;
constexpr int64_t kSeqLen = 128;
constexpr double kLossScale = 1.0 / (kSequences * kSeqLen);

class GpuLostRecordingTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) gpu().set_deterministic(true);
  }
  void TearDown() override {
    if (!IsSkipped()) gpu().set_deterministic(false);
  }
};

// A call that cannot be captured, first in a pass or last, ours or one whose error nobody looks at,
// as in a library: the recording is lost, its work is done all the same, and the memory of
// recordings is counted and given back.
TEST_F(GpuLostRecordingTest, FailedRecordingsAreLaunched) {
  DeviceBuffer numbers = device().Allocate(sizeof(float) * 16, "test");
  const TensorView view = numbers.View(DType::kF32, 16);
  ReplayedPasses::Key key;
  key.tokens = view;
  for (const std::string fails : {"never", "first", "last"}) {
    SCOPED_TRACE(fails);
    ReplayedPasses passes(device());
    int calls = 0;
    const std::vector<float> ones(16, 1.0f);
    std::vector<float> found(16);
    for (int pass = 0; pass < 4; ++pass) {
      device().CopyAsync(view, ConstTensorView(ones.data(), DType::kF32, {16}), stream());
      passes.Run(
          key,
          [&] {
            ++calls;
            if (fails == "first") cudaStreamSynchronize(NativeStream(stream()));
            device().ZeroAsync(view, stream());
            if (fails == "last") cudaStreamSynchronize(NativeStream(stream()));
          },
          stream());
      device().CopyAsync(TensorView(found.data(), DType::kF32, {16}), view, stream());
      stream().Synchronize();
      EXPECT_EQ(found, std::vector<float>(16, 0.0f)) << pass;
    }
    EXPECT_EQ(calls, fails == "never" ? 2 : 5);
    EXPECT_EQ(passes.replays(), fails == "never" ? 2 : 0);
  }
  EXPECT_EQ(device().memory_usage().bytes_by_kind["recordings"], 0u);
}

// A model whose products are dense and blocked.
RunSpec RunOf(ModelFamily family) {
  RunSpec run;
  run.model = SmallGpuModel(family, /*layers=*/2, kSeqLen);
  run.deterministic = true;
  SparsitySpec blocks;
  blocks.include = {"layers.*.mlp.*"};
  blocks.parameterisation = "block_sparse";
  blocks.sparsity = 0.5;
  blocks.block_out = blocks.block_in = 64;
  PhaseSpec phase;
  phase.batch = {.seq_len = kSeqLen,
                 .tokens_per_step = kSequences * kSeqLen,
                 .micro_batch_sequences = kSequences};
  phase.sparsity = {blocks};
  run.phases = {phase};
  return run;
}

// What a model's pass leaves, four times over; the second is recorded.
struct Passes {
  std::vector<std::vector<float>> gradients, losses;
  int calls = 0;
};

// `in_the_middle` is called in each, when half of the parameters have their gradients.
Passes RunPasses(const RunSpec& run, const std::function<void()>& in_the_middle, CudaBackend& gpu,
                 Stream& stream) {
  const auto communicator = MakeSingleProcessCommunicator();
  TrainingState state(run, 0, {}, *communicator, gpu, stream);
  state.InitializeValues(stream);
  Model& model = state.model();
  int ready = 0;
  const int middle = static_cast<int>(model.parameters().size()) / 2;
  model.set_hooks({.before_use = nullptr, .grad_ready = [&](int) {
                     if (++ready == middle) in_the_middle();
                   }});
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < kSequences * kSeqLen + 1; ++i) {
    tokens.push_back(static_cast<int32_t>(RandomBelow(3, 0, i, 400)));
  }
  BatchFeeder feeder(gpu.device(), kSequences, kSeqLen);
  ReplayedPasses replayed(gpu.device());
  Passes passes;
  for (int i = 0; i < 4; ++i) {
    const MicroBatch batch =
        feeder.Feed(tokens.data(), tokens.data() + 1, kSequences, kSeqLen, stream);
    const TensorView losses = feeder.Losses(kSequences, kSeqLen);
    model.ValuesChanged();
    model.StartGradients();
    const PassState pass_state = model.NextPass().value();
    const auto pass = [&] {
      ++passes.calls;
      ready = 0;
      model.SetNextPass(pass_state);
      model.ForwardBackward(batch, kLossScale, losses, stream);
    };
    const ReplayedPasses::Key key = {.model = &model,
                                     .state = pass_state,
                                     .tokens = batch.tokens,
                                     .seq_len = kSeqLen,
                                     .loss_scale = kLossScale};
    if (!replayed.Run(key, pass, stream)) model.PassWasReplayed();
    passes.losses.push_back(ReadFloats(gpu.device(), losses, stream));
    passes.gradients.push_back(ReadFloats(gpu.device(), state.buffer().grads(), stream));
    gpu.device().ZeroAsync(state.buffer().grads(), stream);
  }
  return passes;
}

// A recording that is lost in the middle of a model's pass: our kernels, cuBLAS's products and
// cuDNN's attention come after the call that ends it, and none of them takes the run down; the pass
// is launched, with the same bits, and one line says why.
TEST_F(GpuLostRecordingTest, RecordingsLostInTheMiddleOfAPassAreLaunched) {
  const cudaStream_t native = NativeStream(stream());
  const std::function<void()> library = [&] { cudaStreamSynchronize(native); };
  const std::function<void()> library_that_looks = [&] {
    if (cudaStreamSynchronize(native) != cudaSuccess) cudaGetLastError();
  };
  const std::function<void()> ours = [&] { stream().Synchronize(); };
  for (const ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama}) {
    const RunSpec run = RunOf(family);
    const Passes expected = RunPasses(
        run, [] {}, gpu(), stream());
    EXPECT_EQ(expected.calls, 2);
    for (const std::function<void()>& call : {library, library_that_looks, ours}) {
      testing::internal::CaptureStderr();
      const Passes found = RunPasses(run, call, gpu(), stream());
      const std::string log = testing::internal::GetCapturedStderr();
      EXPECT_EQ(found.calls, 5);
      EXPECT_TRUE(found.losses == expected.losses);
      EXPECT_TRUE(found.gradients == expected.gradients);
      const size_t line = log.find("passes are launched kernel by kernel");
      EXPECT_NE(line, std::string::npos) << log;
      EXPECT_EQ(log.find("passes are launched kernel by kernel", line + 1), std::string::npos)
          << log;
      EXPECT_NE(log.find("parallel { graphs: OFF }"), std::string::npos) << log;
    }
  }
  EXPECT_EQ(device().memory_usage().bytes_by_kind["recordings"], 0u);
}

}  // namespace
}  // namespace filigree
