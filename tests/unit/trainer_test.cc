// The trainer's pieces that need no run: optimizer, state moves, planner, sampling.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/generator.h"
#include "trainer/planner.h"
#include "trainer/resume.h"
#include "trainer/state_succession.h"
#include "trainer/topology_updater.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : backend_(device_), stream_(device_.NewStream()) {}

  std::unique_ptr<TrainingState> MakeState(const RunSpec& run, int phase) {
    return std::make_unique<TrainingState>(run, phase, std::map<std::string, SparseLayout>{},
                                           *communicator_, backend_, *stream_);
  }
  // All stored values of a parameter expanded to its logical cells.
  std::vector<float> Dense(TrainingState& state, int parameter) {
    const Parameter& p = state.parameters()[parameter];
    std::vector<float> dense(p.logical_count(), 0.0f);
    const auto logical = p.layout.LogicalIndices();
    const float* values = state.buffer().Values(parameter).As<float>();
    for (size_t slot = 0; slot < logical.size(); ++slot) {
      if (logical[slot] >= 0) dense[logical[slot]] = values[slot];
    }
    return dense;
  }

  CpuDevice device_;
  CpuBackend backend_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> communicator_ = MakeSingleProcessCommunicator();
};

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
    TensorView m = sparse->buffer().M(range);
    std::fill_n(m.As<float>(), m.size(), 1.0f);
  }
  auto dense = MakeState(run, 1);
  dense->TakeOver(*sparse, /*keep_moments=*/false, 0, *stream_);
  for (size_t i = 0; i < dense->parameters().size(); ++i) {
    EXPECT_EQ(Dense(*dense, static_cast<int>(i)), Dense(*sparse, static_cast<int>(i)));
  }
  for (const OwnedRange& range : dense->buffer().owned()) {
    TensorView m = dense->buffer().M(range);
    for (int64_t k = 0; k < m.size(); ++k) ASSERT_EQ(m.As<float>()[k], 0.0f);
  }
}

TEST_F(TrainerTest, KeptMomentsFollowTheirCells) {
  RunSpec run = OddRun();
  run.phases[1].moments = Moments::kKeep;
  auto sparse = MakeState(run, 0);
  for (const OwnedRange& range : sparse->buffer().owned()) {
    TensorView v = sparse->buffer().V(range);
    std::fill_n(v.As<float>(), v.size(), 2.0f);
  }
  auto dense = MakeState(run, 1);
  dense->TakeOver(*sparse, /*keep_moments=*/true, 0, *stream_);
  double kept = 0, expected = 0;
  for (const OwnedRange& range : dense->buffer().owned()) {
    TensorView v = dense->buffer().V(range);
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

TEST_F(TrainerTest, PlannedBytesOfSparsifiedWeightsAreAQuarter) {
  RunSpec run = OddRun();
  // Blocks that divide the widths: exactly a quarter.
  run.model.width = 64;
  run.model.head_size = 16;
  run.model.heads = 4;
  run.model.kv_heads = 2;
  run.model.feed_forward = 128;
  const RunPlan plan = PlanRun(run, 2, backend_);
  int64_t sparsifiable = 0;
  const auto dense = MakeState(run, 1);
  for (const Parameter& p : dense->parameters()) {
    if (p.sparsifiable) sparsifiable += p.logical_count();
  }
  const PhasePlan& sparse = plan.phases[0];
  EXPECT_EQ(sparse.sparsity, 0.75);
  EXPECT_EQ(sparse.parameters_logical - sparse.parameters_stored, sparsifiable * 3 / 4);
  EXPECT_NEAR(static_cast<double>(sparse.exchanged.sparsified_grads), sparsifiable * 4 / 4.0,
              0.05 * static_cast<double>(sparsifiable));
  EXPECT_EQ(plan.average_density(), (0.25 + 1.0) / 2);
}

TEST_F(TrainerTest, PlannedMemoryIsWhatAStateHolds) {
  const RunSpec run = OddRun();
  const RunPlan plan = PlanRun(run, 1, backend_);
  for (int phase = 0; phase < 2; ++phase) {
    auto state = MakeState(run, phase);
    const auto held = device_.memory_usage().bytes_by_kind;
    for (const char* kind : {"values", "grads", "moments", "activations"}) {
      EXPECT_EQ(static_cast<int64_t>(held.at(kind)), plan.phases[phase].memory_bytes.at(kind))
          << kind << " of phase " << phase;
    }
  }
}

// The peak of an update is the new state beside the old one, or the dense gradients before it.
TEST_F(TrainerTest, PlannedMemoryOfAnUpdateIsItsPeak) {
  for (const char* rule : {"set", "rigl"}) {
    RunSpec run = OddRun();
    run.phases.resize(1);
    SparsitySpec& spec = run.phases[0].sparsity[0];
    spec.rule = rule;
    spec.drop_fraction = 0.3;
    spec.update_interval = 2;
    spec.initial_sparsity = spec.sparsity;
    const RunPlan plan = PlanRun(run, 1, backend_);
    CpuDevice device;
    CpuBackend backend(device);
    const auto stream = device.NewStream();
    StateSuccession state(run, *communicator_, backend, *stream);
    ASSERT_TRUE(state.Build(0, nullptr).ok());
    TopologyUpdater updater(run, *communicator_, backend);
    updater.BeginPhase(0);
    updater.StartCollecting(state->model(), 2, *stream);
    updater.FinishCollecting(state->model(), *stream);
    const auto update = updater.Propose(*state, 2, *stream);
    ASSERT_TRUE(update.changed());
    state.ChangeLayouts(update.layouts, 2);
    const auto peak = static_cast<double>(device.memory_usage().peak_bytes);
    const auto planned = static_cast<double>(plan.phases[0].memory_total());
    EXPECT_NEAR(peak / planned, 1, 0.02) << rule << ": held " << peak << ", planned " << planned;
  }
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
  EXPECT_TRUE(CheckSameModel(a, b, "p").ok());
  b.layers = 3;
  b.tied_head = true;
  const Status status = CheckSameModel(a, b, "p");
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_NE(status.message().find("layers 2 (config: 3)"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("tied_head 0 (config: 1)"), std::string::npos);
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
