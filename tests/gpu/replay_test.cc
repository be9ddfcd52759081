// Passes that are recorded and replayed give the bits of passes that are launched.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/small_model.h"
#include "tests/unit/data_testing.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/replayed_passes.h"
#include "trainer/trainer.h"

namespace filigree {
namespace {

constexpr int64_t kSequences = 4;
constexpr int64_t kSeqLen = 128;
constexpr int64_t kSteps = 20;

class GpuReplayTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    gpu().set_deterministic(true);
    std::string pattern =
        (std::filesystem::temp_directory_path() / "filigree-replay-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
    WriteTokens("train", 20000, 1);
    WriteTokens("val", 3000, 2);
  }
  void TearDown() override {
    if (IsSkipped()) return;
    gpu().set_deterministic(false);
    std::filesystem::remove_all(folder_);
  }

  void WriteTokens(const std::string& name, int64_t count, uint64_t seed) {
    std::vector<int32_t> tokens(count);
    for (int64_t i = 0; i < count; ++i) {
      tokens[i] = static_cast<int32_t>(RandomBelow(seed, 0, i, 400) * (i % 3 + 1) / 3);
    }
    ShardWriter writer({folder_ + "/" + name, DType::kU16, count});
    ASSERT_TRUE(writer.Write(tokens).ok());
    ASSERT_TRUE(writer.Finish().ok());
  }

  // Blocks that RigL moves twice, then a dense phase; three evaluations; a last micro-batch of each
  // step that is smaller than the others where there are several.
  RunSpec Run(ModelFamily family, int64_t accumulation, Recompute recompute) const {
    RunSpec run;
    run.model = SmallGpuModel(family, /*layers=*/3, kSeqLen);
    run.model.recompute = recompute;
    run.deterministic = true;
    SparsitySpec blocks;
    blocks.include = {"layers.*"};
    blocks.parameterisation = "block_sparse";
    blocks.sparsity = 0.5;
    blocks.block_out = blocks.block_in = 64;
    blocks.rule = "rigl";
    blocks.update_interval = 4;
    blocks.drop_fraction = 0.3;
    PhaseSpec sparse;
    sparse.name = "sparse";
    sparse.steps = 12;
    sparse.data.train = {{folder_ + "/train_*.bin", 1}};
    sparse.data.validation = folder_ + "/val_*.bin";
    const int64_t sequences = accumulation * kSequences - (accumulation > 1 ? 2 : 0);
    sparse.batch = {.seq_len = kSeqLen,
                    .tokens_per_step = sequences * kSeqLen,
                    .micro_batch_sequences = kSequences};
    sparse.schedule.lr = 3e-3;
    sparse.sparsity = {blocks};
    PhaseSpec dense = sparse;
    dense.name = "dense";
    dense.first_step = sparse.steps;
    dense.steps = kSteps - sparse.steps;
    dense.sparsity = {};
    run.phases = {sparse, dense};
    run.evaluation.every_steps = 7;
    run.evaluation.tokens = 5 * kSeqLen;
    run.log_every_steps = 1;
    run.tensorboard = false;
    return run;
  }

  // What a run leaves that does not depend on the clock: losses, norms, validation losses, and the
  // bytes of its last checkpoint.
  struct Trained {
    std::vector<std::vector<double>> metrics;
    std::map<std::string, std::string> state;
    int64_t topology_updates = 0;
  };
  Trained Train(RunSpec run, bool graphs) {
    run.graphs = graphs ? GraphChoice::kWherePossible : GraphChoice::kOff;
    const std::string directory = folder_ + "/run";
    std::filesystem::remove_all(directory);
    const auto communicator = MakeSingleProcessCommunicator();
    TrainOptions options;
    options.run = run;
    options.run_dir = directory;
    const Status status = filigree::Train(options, *communicator, gpu());
    EXPECT_TRUE(status.ok()) << status.message();
    Trained trained;
    std::ifstream lines(directory + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) {
      const auto object = nlohmann::json::parse(line);
      std::vector<double> numbers;
      for (const char* name : {"step", "loss", "grad_norm", "val_loss"}) {
        if (object.contains(name)) numbers.push_back(object[name].get<double>());
      }
      trained.metrics.push_back(numbers);
      trained.topology_updates += object.contains("topology");
    }
    for (const auto& file :
         std::filesystem::directory_iterator(CheckpointDirectory(directory, kSteps))) {
      if (file.path().extension() != ".safetensors") continue;
      std::ifstream in(file.path(), std::ios::binary);
      trained.state[file.path().filename()] = {std::istreambuf_iterator<char>(in), {}};
    }
    return trained;
  }

  std::string folder_;
};

TEST_F(GpuReplayTest, RunsAreTheSameBits) {
  for (const ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama}) {
    for (const int64_t accumulation : {1, 3}) {
      SCOPED_TRACE(testing::Message()
                   << "family " << static_cast<int>(family) << ", accumulation " << accumulation);
      const auto recompute = accumulation == 1 ? Recompute::kNone : Recompute::kActivations;
      const RunSpec run = Run(family, accumulation, recompute);
      const Trained launched = Train(run, false), replayed = Train(run, true);
      // Steps, two updates and evaluations: at 7, 12 (the phase's begin), 14 and before the first.
      ASSERT_GE(launched.metrics.size(), static_cast<size_t>(kSteps + 2 + 3));
      EXPECT_GE(launched.topology_updates, 2);
      EXPECT_EQ(replayed.metrics, launched.metrics);
      ASSERT_GE(launched.state.size(), 1u);
      EXPECT_TRUE(replayed.state == launched.state);
    }
  }
}

// The second pass of a key is recorded and the third replayed, until memory comes or goes.
TEST_F(GpuReplayTest, MemoryThatComesOrGoesEndsARecording) {
  ReplayedPasses passes(device());
  DeviceBuffer numbers = device().Allocate(sizeof(float) * 16, "test");
  const TensorView view = numbers.View(DType::kF32, 16);
  ReplayedPasses::Key key;
  key.tokens = view;
  const auto run = [&](const ReplayedPasses::Key& k) {
    return passes.Run(
        k, [&] { device().ZeroAsync(view, stream()); }, stream());
  };
  EXPECT_TRUE(run(key));
  EXPECT_TRUE(run(key));
  const std::vector<float> ones(16, 1.0f);
  std::vector<float> found(16);
  device().CopyAsync(view, ConstTensorView(ones.data(), DType::kF32, {16}), stream());
  EXPECT_FALSE(run(key));
  device().CopyAsync(TensorView(found.data(), DType::kF32, {16}), view, stream());
  stream().Synchronize();
  EXPECT_EQ(found, std::vector<float>(16, 0.0f));

  ReplayedPasses::Key other = key;
  other.loss_scale = 2;
  EXPECT_TRUE(run(other));
  EXPECT_FALSE(run(key));
  DeviceBuffer more = device().Allocate(64, "test");
  EXPECT_TRUE(run(key));
  more = DeviceBuffer();
  EXPECT_TRUE(run(key));
  EXPECT_TRUE(run(key));
  EXPECT_FALSE(run(key));
}

}  // namespace
}  // namespace filigree
