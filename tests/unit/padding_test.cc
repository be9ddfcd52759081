// A device that pads the feed-forward's width inside against one that does not: the same training,
// the same files, either way round.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/checkpoint_testing.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/export/huggingface_export.h"
#include "trainer/inference.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

// A device with its rows' alignment, and a state of a phase of `run` on it.
class Trained {
 public:
  Trained(const RunSpec& run, int64_t row_alignment, int phase = 0)
      : run_(run), device_(DType::kF32, row_alignment) {
    state_ = std::make_unique<TrainingState>(run_, phase, std::map<std::string, SparseLayout>{},
                                             *communicator_, backend_, *stream_);
  }

  TrainingState& state() { return *state_; }
  Backend& backend() { return backend_; }
  Stream& stream() { return *stream_; }

  // Of all segments, padding included.
  int64_t Elements() const {
    int64_t count = 0;
    for (const Parameter& parameter : state_->parameters()) count += parameter.segment_count();
    return count;
  }

  void Initialize() { state_->InitializeValues(*stream_); }
  // Step `step` of a fixed list of random samples.
  double Step(int64_t step) {
    const BatchSpec& batch = run_.phases[0].batch;
    std::vector<int32_t> tokens(batch.tokens_per_step), targets(batch.tokens_per_step);
    for (size_t t = 0; t < tokens.size(); ++t) {
      const auto draw = [&](const char* what) {
        return static_cast<int32_t>(RandomBits(step, RngStream(what), t) % run_.model.vocab_size);
      };
      tokens[t] = draw("tokens");
      targets[t] = draw("targets");
    }
    TrainStep train_step(batch, backend_, *stream_);
    // Large, so that the update is smooth where a gradient is no more than rounding.
    const OptimizerSpec optimizer = {.epsilon = 1e-3};
    const StepResult result = train_step.Run(*state_,
                                             {.tokens = tokens.data(),
                                              .targets = targets.data(),
                                              .sequences = batch.sequences_per_step(),
                                              .valid_tokens = static_cast<double>(targets.size())},
                                             optimizer, /*lr=*/0.01, step + 1);
    EXPECT_FALSE(result.update.skipped);
    return result.loss_sum;
  }

  std::string Save(const std::string& directory) {
    CheckpointInfo info;
    info.step = 1;
    info.seed = run_.seed;
    info.model = run_.model;
    const Status status = state_->Save(directory, info, "", *stream_);
    EXPECT_TRUE(status.ok()) << status.message();
    return directory;
  }
  void Load(const std::string& directory) {
    const auto reader = CheckpointReader::Open(directory);
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    EXPECT_TRUE(state_->Load(**reader, /*moments=*/true, *stream_).ok());
  }

  // An array of a parameter by logical cell; its padding must be zero.
  std::vector<float> Cells(int index, StateKind kind) {
    const Parameter& p = state_->parameters()[index];
    const std::vector<std::byte> bytes =
        GatherSegment(state_->buffer(), index, kind, *communicator_, *stream_);
    const auto* segment = reinterpret_cast<const float*>(bytes.data());
    std::vector<float> cells(p.logical_count(), 0.0f);
    const std::vector<int64_t> logical = p.layout.LogicalIndices();
    for (int64_t slot = 0; slot < p.segment_count(); ++slot) {
      if (slot < p.layout.stored_count() && logical[slot] >= 0) {
        cells[logical[slot]] = segment[slot];
      } else {
        EXPECT_EQ(segment[slot], 0.0f) << p.name << " padding " << slot;
      }
    }
    return cells;
  }

 private:
  const RunSpec run_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  std::unique_ptr<Communicator> communicator_ = MakeSingleProcessCommunicator();
  std::unique_ptr<TrainingState> state_;
};

void ExpectSameState(Trained& a, Trained& b, float tolerance) {
  for (size_t i = 0; i < a.state().parameters().size(); ++i) {
    SCOPED_TRACE(a.state().parameters()[i].name);
    for (StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      const std::vector<float> left = a.Cells(static_cast<int>(i), kind);
      const std::vector<float> right = b.Cells(static_cast<int>(i), kind);
      ASSERT_EQ(left.size(), right.size());
      for (size_t c = 0; c < left.size(); ++c) ASSERT_NEAR(left[c], right[c], tolerance) << c;
    }
  }
}

std::string Tensors(const std::string& directory) {
  std::string all;
  for (const char* name : {"model", "optimizer", "layouts"}) {
    all += FilesBelow(directory).at(directory + "/" + name + ".safetensors");
  }
  return all;
}

class PaddingTest : public DirectoryTest, public ::testing::WithParamInterface<const char*> {
 protected:
  // Feed-forward width 50: 56 inside.
  RunSpec run() const {
    RunSpec run = OddRun();
    run.phases[0].sparsity[0].parameterisation = GetParam();
    run.phases[0].sparsity[0].rank = 3;
    if (run.phases[0].sparsity[0].parameterisation == "dense") run.phases[0].sparsity.clear();
    return run;
  }
  bool StoresPadding() const {
    return GetParam() != std::string_view("masked") &&
           GetParam() != std::string_view("block_sparse");
  }
};

TEST_P(PaddingTest, TrainsAlike) {
  Trained plain(run(), 1), padded(run(), 8);
  EXPECT_EQ(padded.Elements() > plain.Elements(), StoresPadding());
  plain.Initialize();
  padded.Initialize();
  ExpectSameState(padded, plain, 0.0f);
  double first = 0, last = 0;
  for (int64_t step = 0; step < 4; ++step) {
    const double loss = plain.Step(step);
    EXPECT_NEAR(padded.Step(step), loss, 1e-4 * loss);
    (step == 0 ? first : last) = loss;
  }
  EXPECT_GT(std::abs(last - first), 1e-2) << "nothing was trained";
  ExpectSameState(padded, plain, 2e-6f);
}

TEST_P(PaddingTest, CheckpointsFitBothWays) {
  for (const auto& [from_alignment, to_alignment] : {std::pair{8, 1}, {1, 8}, {8, 8}}) {
    SCOPED_TRACE(std::to_string(from_alignment) + " to " + std::to_string(to_alignment));
    Trained from(run(), from_alignment), to(run(), to_alignment);
    from.Initialize();
    from.Step(0);
    const std::string name = std::to_string(from_alignment) + std::to_string(to_alignment);
    const std::string saved = from.Save(Path(name));
    to.Load(saved);
    ExpectSameState(to, from, 0.0f);
    const std::string again = to.Save(Path(name + "again"));
    EXPECT_EQ(Tensors(again), Tensors(saved));
    const double loss = from.Step(1);
    EXPECT_NEAR(to.Step(1), loss, 1e-4 * loss);
    ExpectSameState(to, from, 2e-6f);
  }
}

TEST_P(PaddingTest, ExportsAndInfersAlike) {
  Trained padded(run(), 8), plain(run(), 1);
  padded.Initialize();
  padded.Step(0);
  plain.Load(padded.Save(Path("padded")));
  plain.Save(Path("plain"));
  std::vector<std::string> exported;
  std::vector<float> logits[2];
  for (const char* name : {"padded", "plain"}) {
    const auto reader = CheckpointReader::Open(Path(name));
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    const std::string out = Path(std::string(name) + "_out");
    const Status status = ExportHuggingFace(**reader, out, {});
    ASSERT_TRUE(status.ok()) << status.message();
    exported.push_back(FilesBelow(out).at(out + "/model.safetensors"));
    // Each checkpoint on each device, in turn.
    for (Trained* on : {&padded, &plain}) {
      const auto model = InferenceModel::Load(**reader, 1, 5, on->backend(), on->stream());
      ASSERT_TRUE(model.ok()) << model.status().message();
      const std::vector<int32_t> tokens = {3, 60, 0, 17, 17};
      const ConstTensorView view = (*model)->model().Logits(
          {.tokens = ConstTensorView(tokens.data(), DType::kI32, {5}), .targets = {}, .seq_len = 5},
          on->stream());
      std::vector<float>& found = logits[on == &plain];
      for (int64_t t = 0; t < view.rows(); ++t) {
        const float* row = view.As<float>() + t * view.row_stride();
        found.insert(found.end(), row, row + view.cols());
      }
    }
  }
  EXPECT_EQ(exported[0], exported[1]);
  ASSERT_EQ(logits[0].size(), logits[1].size());
  for (size_t i = 0; i < logits[0].size(); ++i) ASSERT_NEAR(logits[0][i], logits[1][i], 1e-5f);
}

TEST_P(PaddingTest, ADensePhaseTakesOverAlike) {
  std::vector<std::vector<float>> taken[2];
  for (int64_t row_alignment : {1, 8}) {
    Trained sparse(run(), row_alignment);
    sparse.Initialize();
    sparse.Step(0);
    Trained dense(run(), row_alignment, /*phase=*/1);
    dense.state().TakeOver(sparse.state(), /*keep_moments=*/false, /*updates_done=*/1,
                           dense.stream());
    for (size_t i = 0; i < dense.state().parameters().size(); ++i) {
      taken[row_alignment == 8].push_back(dense.Cells(static_cast<int>(i), StateKind::kMaster));
    }
  }
  ASSERT_EQ(taken[0].size(), taken[1].size());
  for (size_t i = 0; i < taken[0].size(); ++i) {
    ASSERT_EQ(taken[0][i].size(), taken[1][i].size());
    for (size_t c = 0; c < taken[0][i].size(); ++c) {
      ASSERT_NEAR(taken[0][i][c], taken[1][i][c], 2e-6f) << "parameter " << i << " cell " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Parameterisations, PaddingTest,
                         ::testing::Values("dense", "masked", "block_sparse", "low_rank",
                                           "sparse_plus_low_rank"));

}  // namespace
}  // namespace filigree
