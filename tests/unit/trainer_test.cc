// The trainer's pieces that need no run: optimizer, state moves, resuming, sampling.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "tests/unit/training_state_testing.h"
#include "trainer/config_changes.h"
#include "trainer/generator.h"
#include "trainer/peak_flops.h"
#include "trainer/resume.h"

namespace filigree {
namespace {

TEST_F(TrainerTest, InitialValuesDoNotDependOnTheLayout) {
  const RunSpec run = OddRun();
  auto sparse = MakeState(run, 0), dense = MakeState(run, 1);
  sparse->InitializeValues(*stream_);
  dense->InitializeValues(*stream_);
  for (size_t i = 0; i < sparse->parameters().size(); ++i) {
    const std::vector<float> s = Dense(*sparse, static_cast<int>(i));
    const std::vector<float> d = Dense(*dense, static_cast<int>(i));
    int64_t stored = 0;
    for (size_t c = 0; c < s.size(); ++c) {
      if (s[c] == 0) continue;
      EXPECT_EQ(s[c], d[c]);
      ++stored;
    }
    if (sparse->parameters()[i].init != InitKind::kZeros) {
      EXPECT_EQ(stored, sparse->parameters()[i].layout.nonzero_count());
    }
  }
}

TEST_F(TrainerTest, ADensePhaseTakesValuesOverAndStartsTheRestAtZero) {
  const RunSpec run = OddRun();
  auto sparse = MakeState(run, 0);
  sparse->InitializeValues(*stream_);
  for (const OwnedRange& range : sparse->buffer().owned()) {
    TensorView m = sparse->buffer().Moments(range).m;
    std::fill_n(m.As<float>(), m.size(), 1.0f);
  }
  auto dense = MakeState(run, 1);
  dense->TakeOver(*sparse, /*keep_moments=*/false, 0, *stream_);
  for (size_t i = 0; i < dense->parameters().size(); ++i) {
    EXPECT_EQ(Dense(*dense, static_cast<int>(i)), Dense(*sparse, static_cast<int>(i)));
  }
  for (const OwnedRange& range : dense->buffer().owned()) {
    TensorView m = dense->buffer().Moments(range).m;
    for (int64_t k = 0; k < m.size(); ++k) ASSERT_EQ(m.As<float>()[k], 0.0f);
  }
}

TEST_F(TrainerTest, KeptMomentsFollowTheirCells) {
  RunSpec run = OddRun();
  run.phases[1].moments = Moments::kKeep;
  auto sparse = MakeState(run, 0);
  for (const OwnedRange& range : sparse->buffer().owned()) {
    TensorView v = sparse->buffer().Moments(range).v;
    std::fill_n(v.As<float>(), v.size(), 2.0f);
  }
  auto dense = MakeState(run, 1);
  dense->TakeOver(*sparse, /*keep_moments=*/true, 0, *stream_);
  double kept = 0, expected = 0;
  for (const OwnedRange& range : dense->buffer().owned()) {
    TensorView v = dense->buffer().Moments(range).v;
    for (int64_t k = 0; k < v.size(); ++k) kept += v.As<float>()[k] / 2.0;
  }
  for (const Parameter& p : sparse->parameters()) expected += p.layout.nonzero_count();
  for (const Parameter& p : dense->parameters()) {
    if (p.padding_count > 0)
      expected += p.padding_count;  // the padding rows' slots were filled too
  }
  EXPECT_EQ(kept, expected);
}

// One step of the flat optimizer against AdamW written out, with clipping and decay of matrices
// only.
// A pass that was recorded and never began: the next one overwrites and materialises as it would
// have done.
TEST_F(TrainerTest, APassThatDidNotBeginIsDoneAgain) {
  const RunSpec run = OddRun();
  auto state = MakeState(run, 0);
  state->InitializeValues(*stream_);
  Model& model = state->model();
  TrainStep step(run.phases[0].batch, backend_, *stream_);
  const int64_t seq_len = run.phases[0].batch.seq_len;
  const RepeatingText text;
  int used = 0;
  ParameterHooks hooks;
  hooks.before_use = [&](int) { ++used; };
  model.set_hooks(hooks);
  model.StartGradients();
  const std::optional<PassState> pass = model.NextPass();
  ASSERT_TRUE(pass.has_value());
  EXPECT_TRUE(pass->overwrites && pass->materialises);
  std::vector<std::vector<float>> grads;
  for (int i = 0; i < 2; ++i) {
    if (i > 0) model.SetNextPass(*pass);
    EXPECT_TRUE(model.NextPass() == pass);
    const MicroBatch batch = step.feeder().Feed(text.samples().tokens, text.samples().targets,
                                                /*rows=*/1, seq_len, *stream_);
    model.ForwardBackward(batch, /*loss_scale=*/1, step.feeder().Losses(1, seq_len), *stream_);
    const TensorView all = state->buffer().grads();
    grads.emplace_back(all.As<float>(), all.As<float>() + all.size());
    EXPECT_EQ(used, (i + 1) * static_cast<int>(state->parameters().size()));
    EXPECT_FALSE(model.NextPass() == pass);
  }
  EXPECT_TRUE(grads[0] == grads[1]);
}

// A device that could be a GPU by its name; the rest is the CPU's.
class NamedDevice final : public Device {
 public:
  NamedDevice(Device& device, std::string_view name) : device_(device), name_(name) {}
  std::string_view name() const override { return name_; }
  DType compute_dtype() const override { return device_.compute_dtype(); }
  int64_t row_alignment() const override { return device_.row_alignment(); }
  DeviceBuffer Allocate(size_t bytes, std::string_view kind) override {
    return device_.Allocate(bytes, kind);
  }
  DeviceBuffer AllocatePinned(size_t bytes, std::string_view kind) override {
    return device_.AllocatePinned(bytes, kind);
  }
  void CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) override {
    device_.CopyAsync(dst, src, stream);
  }
  void ZeroAsync(TensorView dst, Stream& stream) override { device_.ZeroAsync(dst, stream); }
  std::unique_ptr<Stream> NewStream(StreamPriority priority) override {
    return device_.NewStream(priority);
  }
  std::unique_ptr<Event> NewEvent() override { return device_.NewEvent(); }
  std::unique_ptr<Event> NewTimedEvent() override { return device_.NewTimedEvent(); }
  MemoryUsage memory_usage() const override { return device_.memory_usage(); }
  void ForgetPeak() override { device_.ForgetPeak(); }

 private:
  Device& device_;
  const std::string_view name_;
};

TEST_F(TrainerTest, ShortPassesOfAGpuAreReplayed) {
  auto state = MakeState(OddRun(), 0);
  const NamedDevice gpu(device_, "cuda");
  BatchSpec batch = OddRun().phases[0].batch;
  const auto replays = [&](GraphChoice choice, const Device& device) {
    return ReplaysPasses(choice, batch, state->model(), device);
  };
  EXPECT_FALSE(replays(GraphChoice::kOff, gpu));
  EXPECT_TRUE(replays(GraphChoice::kWhereTheyGain, gpu));
  EXPECT_FALSE(replays(GraphChoice::kWhereTheyGain, device_));
  EXPECT_FALSE(replays(GraphChoice::kWherePossible, device_));
  batch.micro_batch_sequences = int64_t{1} << 40;
  EXPECT_FALSE(replays(GraphChoice::kWhereTheyGain, gpu));
  EXPECT_TRUE(replays(GraphChoice::kWherePossible, gpu));
}

TEST_F(TrainerTest, OptimizerClipsByTheGlobalNormAndDecaysMatricesOnly) {
  const RunSpec run = OddRun();
  auto state = MakeState(run, 0);
  state->InitializeValues(*stream_);
  std::vector<std::vector<float>> before;
  double squares = 0;
  for (size_t i = 0; i < state->parameters().size(); ++i) {
    TensorView values = state->buffer().Values(static_cast<int>(i));
    TensorView grads = state->buffer().Grads(static_cast<int>(i));
    before.emplace_back(values.As<float>(), values.As<float>() + values.size());
    for (int64_t k = 0; k < grads.size(); ++k) {
      grads.As<float>()[k] = 0.01f * static_cast<float>((k + static_cast<int64_t>(i)) % 7 - 3);
      squares += std::pow(static_cast<double>(grads.As<float>()[k]), 2);
    }
  }
  OptimizerSpec spec;
  spec.clip_norm = 0.5 * std::sqrt(squares);
  const double lr = 0.01;
  const Optimizer::Result result = state->optimizer().Step(spec, lr, 1, *stream_);
  EXPECT_NEAR(result.grad_norm, std::sqrt(squares), 1e-6 * std::sqrt(squares));
  for (size_t i = 0; i < state->parameters().size(); ++i) {
    const double decay = state->parameters()[i].decay ? spec.weight_decay : 0.0;
    EXPECT_EQ(state->parameters()[i].decay, state->parameters()[i].shape.size() == 2);
    const float* values = state->buffer().Values(static_cast<int>(i)).As<float>();
    const float* grads = state->buffer().Grads(static_cast<int>(i)).As<float>();
    for (size_t k = 0; k < before[i].size(); ++k) {
      const double g = 0.5 * grads[k];
      const double expected =
          before[i][k] - lr * (g / (std::abs(g) + spec.epsilon) + decay * before[i][k]);
      ASSERT_NEAR(values[k], expected, 2e-6) << state->parameters()[i].name << " slot " << k;
    }
  }
}

TEST_F(TrainerTest, ANonFiniteGradientChangesNothing) {
  const RunSpec run = OddRun();
  auto state = MakeState(run, 0);
  state->InitializeValues(*stream_);
  const std::vector<float> before = Dense(*state, 2);
  state->buffer().Grads(1).As<float>()[0] = std::nanf("");
  EXPECT_TRUE(state->optimizer().Step({}, 0.1, 1, *stream_).skipped);
  EXPECT_EQ(Dense(*state, 2), before);
}

TEST(SpecTest, MomentsAreCountedFromTheLastFreshPhase) {
  RunSpec run = OddRun();
  EXPECT_EQ(UpdatesSinceFreshMoments(run, 0, 0), 1);
  EXPECT_EQ(UpdatesSinceFreshMoments(run, 1, 4), 1);
  run.phases[1].moments = Moments::kKeep;
  EXPECT_EQ(UpdatesSinceFreshMoments(run, 1, 4), 5);
}

TEST(ResumeTest, EveryDifferenceOfTheModelIsNamed) {
  ModelSpec a = OddRun().model, b = a;
  EXPECT_TRUE(CheckSameModel(a, b, "p", "mend").ok());
  b.layers = 3;
  b.tied_head = true;
  const Status status = CheckSameModel(a, b, "p", "mend");
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_NE(status.message().find("layers 2 (config: 3)"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("tied_head 0 (config: 1)"), std::string::npos);
}

// What a step has done is no more than what the device can do.
TEST_F(TrainerTest, AMeasuredPeakIsNeverLessThanAStepDid) {
  PeakFlops peak(1000, /*measured=*/true);
  peak.Reached(500);
  EXPECT_EQ(peak.Share(500), 0.5);
  peak.Reached(2000);
  EXPECT_EQ(peak.Share(2000), 1.0);
  peak.Reached(1000);
  peak.Reached(std::nan(""));  // a step that was left out
  EXPECT_EQ(peak.Share(500), 0.25);

  PeakFlops said(1000, /*measured=*/false);
  said.Reached(999);
  EXPECT_EQ(said.Share(250), 0.25);
  said.Reached(1001);
  EXPECT_EQ(said.Share(250), std::nullopt);

  EXPECT_EQ(PeakFlops::Of(backend_, 3e9, 4).flops(), 12e9);
  EXPECT_GT(PeakFlops::Of(backend_, 0, 2).flops(), 0);
}

TEST(ResumeTest, ConfigurationsAreComparedFieldByField) {
  const std::string before =
      "# c\nname: \"a {b}\"\nbatch {\n  seq_len: 8\n}\n"
      "phase {\n  steps: 4\n}\nphase {\n  steps: 5\n  tokens: 9\n}\n";
  const std::string now =
      "name: \"a {b}\"\nbatch {\n  seq_len: 16\n}\n"
      "phase {\n  steps: 4\n  data {\n    glob: \"x\"\n    glob: \"y\"\n  }\n}\n"
      "phase {\n  steps: 6\n}\n";
  EXPECT_EQ(DescribeConfigChanges(before, before), "");
  EXPECT_EQ(DescribeConfigChanges(before, now),
            "batch.seq_len 16 (was 8), phase.data.glob \"x\" (was not set), "
            "phase.data.glob[1] \"y\" (was not set), phase[1].steps 6 (was 5), "
            "phase[1].tokens not set (was 9)");
  std::string many;
  for (int i = 0; i < 15; ++i) many += "field" + std::to_string(i) + ": 1\n";
  EXPECT_TRUE(DescribeConfigChanges("", many).ends_with(" and 3 more"));
}

TEST(SampleIndexTest, TemperatureTopKAndTies) {
  const std::vector<float> logits = {1.0f, 3.0f, 3.0f, -2.0f};
  SamplingOptions options;
  options.temperature = 0;
  EXPECT_EQ(SampleIndex(logits, options, 0.99), 1);
  options.temperature = 1;
  options.top_k = 2;
  EXPECT_EQ(SampleIndex(logits, options, 0.0), 1);
  EXPECT_EQ(SampleIndex(logits, options, 0.49), 1);
  EXPECT_EQ(SampleIndex(logits, options, 0.51), 2);
  EXPECT_EQ(SampleIndex(logits, options, 0.999999), 2);
  options.top_k = 0;
  EXPECT_EQ(SampleIndex(logits, options, 0.999999), 3);
}

}  // namespace
}  // namespace filigree
