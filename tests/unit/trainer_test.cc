// The trainer's pieces that need no run: optimizer, state moves, planner, sampling.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/generator.h"
#include "trainer/planner.h"
#include "trainer/resume.h"
#include "trainer/state_succession.h"
#include "trainer/topology_updater.h"
#include "trainer/train_step.h"
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

// A run whose larger matrices have codes, in each form of the state.
std::vector<RunSpec> CompactRuns() {
  std::vector<RunSpec> runs;
  for (int form = 0; form < 4; ++form) {
    RunSpec run = OddRun();
    run.model.feed_forward = 800;  // 42 x 800, of which blocks store 8448
    for (PhaseSpec& phase : run.phases) {
      phase.optimizer.state = {.bf16 = form % 2 == 1, .eight_bit_moments = form >= 2};
    }
    runs.push_back(run);
  }
  return runs;
}

TEST_F(TrainerTest, PlannedMemoryOfCompactStateIsWhatItHolds) {
  std::vector<int64_t> moments;
  for (const RunSpec& run : CompactRuns()) {
    const RunPlan plan = PlanRun(run, 1, backend_);
    auto state = MakeState(run, 0);
    const auto held = device_.memory_usage().bytes_by_kind;
    for (const char* kind : {"values", "grads", "moments"}) {
      EXPECT_EQ(static_cast<int64_t>(held.at(kind)), plan.phases[0].memory_bytes.at(kind)) << kind;
    }
    moments.push_back(plan.phases[0].memory_bytes.at("moments"));
  }
  EXPECT_EQ(moments[1] * 2, moments[0]);
  EXPECT_LT(moments[2], moments[1]);
  EXPECT_LT(moments[3], moments[2]);
}

// Checkpoints, phases and topology updates move state as plain numbers: what is held in fewer bytes
// comes back as it was, and goes on with the same bits.
TEST_F(TrainerTest, CompactStateMovesWithoutLoss) {
  for (const RunSpec& run : CompactRuns()) {
    auto state = MakeState(run, 0);
    state->InitializeValues(*stream_);
    const auto fill_and_step = [&](TrainingState& s, int64_t step) {
      float* grads = s.buffer().grads().As<float>();
      for (const OwnedRange& range : s.buffer().owned()) {
        const int64_t stored = s.parameters()[range.segment].layout.stored_count();
        for (int64_t i = 0; i < std::min(range.count, stored); ++i) {
          grads[range.flat_begin + i] = static_cast<float>(
              RandomNormal(static_cast<uint64_t>(step), RngStream("test"), range.flat_begin + i));
        }
      }
      s.optimizer().Step({.beta2 = 0.999}, 1e-2, step, *stream_);
    };
    for (int64_t step = 1; step <= 3; ++step) fill_and_step(*state, step);
    auto moved = MakeState(run, 0);
    moved->TakeOver(*state, /*keep_moments=*/true, 3, *stream_);
    for (TrainingState* s : {state.get(), moved.get()}) fill_and_step(*s, 4);
    for (size_t i = 0; i < state->parameters().size(); ++i) {
      const int parameter = static_cast<int>(i);
      for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
        EXPECT_EQ(GatherSegment(state->buffer(), parameter, kind, *communicator_, *stream_),
                  GatherSegment(moved->buffer(), parameter, kind, *communicator_, *stream_))
            << state->parameters()[i].name;
      }
    }
  }
}

// Four sequences that repeat themselves.
class RepeatingText {
 public:
  RepeatingText() {
    for (int i = 0; i < 65; ++i) text_.push_back(i % 16 * (i % 3 + 1));
  }
  StepSamples samples() const {
    return {
        .tokens = text_.data(), .targets = text_.data() + 1, .sequences = 4, .valid_tokens = 64};
  }

 private:
  std::vector<int32_t> text_;
};

// Fifty steps: the loss in fewer bytes follows that of whole state.
TEST_F(TrainerTest, CompactStateLearnsLikeWholeState) {
  const RepeatingText text;
  std::vector<double> first, last;
  for (RunSpec run : CompactRuns()) {
    run.phases[0].steps = 50;
    const PhaseSpec& phase = run.phases[0];
    auto state = MakeState(run, 0);
    state->InitializeValues(*stream_);
    TrainStep train(phase.batch, backend_, *stream_);
    for (int64_t step = 1; step <= phase.steps; ++step) {
      const StepResult result = train.Run(*state, text.samples(), phase.optimizer, 1e-2, step);
      if (step == 1) first.push_back(result.loss_sum / 64);
      if (step == phase.steps) last.push_back(result.loss_sum / 64);
    }
  }
  EXPECT_LT(last[0], 0.2 * first[0]);
  for (size_t form = 1; form < last.size(); ++form) {
    EXPECT_NEAR(first[form], first[0], 0.01);
    EXPECT_NEAR(last[form], last[0], 0.1) << "form " << form;
  }
}

// A run of the given update over one or two micro-batches a step, in either family.
RunSpec LayerRun(bool per_layer, int64_t micro_batch, ModelFamily family) {
  RunSpec run = OddRun();
  run.model.family = family;
  run.model.tied_head = family == ModelFamily::kGpt2;
  if (family == ModelFamily::kGpt2) {
    run.model.kv_heads = run.model.heads;
    run.model.head_size = run.model.width / run.model.heads;
  }
  for (PhaseSpec& phase : run.phases) {
    phase.batch.micro_batch_sequences = micro_batch;
    phase.optimizer.per_layer = per_layer;
    phase.optimizer.clip_norm = 0;
  }
  return run;
}

// Without clipping the order of updates is all that differs.
TEST_F(TrainerTest, PerLayerUpdatesAreTheSameUpdates) {
  const RepeatingText text;
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    for (const int64_t micro_batch : {4, 2}) {
      for (int phase = 0; phase < 2; ++phase) {  // blocks, and dense
        std::vector<std::unique_ptr<TrainingState>> states;
        std::vector<RunSpec> runs;
        for (const bool per_layer : {false, true}) {
          runs.push_back(LayerRun(per_layer, micro_batch, family));
        }
        std::vector<std::vector<double>> norms(2);
        for (int i = 0; i < 2; ++i) {
          const PhaseSpec& spec = runs[i].phases[phase];
          states.push_back(MakeState(runs[i], phase));
          states[i]->InitializeValues(*stream_);
          TrainStep train(spec.batch, backend_, *stream_);
          for (int64_t step = 1; step <= 4; ++step) {
            const StepResult result =
                train.Run(*states[i], text.samples(), spec.optimizer, 1e-2, step);
            EXPECT_FALSE(result.update.skipped || result.update.spoiled);
            norms[i].push_back(result.update.grad_norm);
          }
        }
        for (size_t step = 0; step < 4; ++step) {
          EXPECT_NEAR(norms[1][step], norms[0][step], 1e-12 * norms[0][step]);
        }
        for (size_t p = 0; p < states[0]->parameters().size(); ++p) {
          EXPECT_EQ(Dense(*states[0], static_cast<int>(p)), Dense(*states[1], static_cast<int>(p)))
              << states[0]->parameters()[p].name << ", micro-batches of " << micro_batch;
        }
      }
    }
  }
}

// One micro-batch a step needs one unit's gradients at a time, several need all.
TEST_F(TrainerTest, GradientsOfOneLayerAtATime) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    const RunSpec whole = LayerRun(true, 2, family), slots = LayerRun(true, 4, family);
    const auto state = MakeState(slots, 1);
    const auto held = static_cast<int64_t>(device_.memory_usage().bytes_by_kind.at("grads"));
    std::vector<int64_t> units(slots.model.layers + 2, 0);
    for (const Bucket& bucket : state->buffer().layout().buckets()) {
      units[bucket.unit] += 4 * bucket.count;
    }
    const bool tied = slots.model.tied_head;
    EXPECT_EQ(held, *std::max_element(units.begin() + tied, units.end()) + (tied ? units[0] : 0));
    EXPECT_EQ(PlanRun(slots, 1, backend_).phases[1].memory_bytes.at("grads"), held);
    EXPECT_GT(PlanRun(whole, 1, backend_).phases[1].memory_bytes.at("grads"), held);
  }
}

TEST_F(TrainerTest, PerLayerUpdatesClipByTheNormOfTheStepBefore) {
  const RepeatingText text;
  const RunSpec run = LayerRun(true, 4, ModelFamily::kLlama);
  const RunSpec global = LayerRun(false, 4, ModelFamily::kLlama);
  auto state = MakeState(run, 1), reference = MakeState(global, 1);
  TrainStep train(run.phases[1].batch, backend_, *stream_);
  OptimizerSpec clipped, exact;
  clipped.clip_norm = 0.01;
  exact.clip_norm = 0;
  for (TrainingState* s : {state.get(), reference.get()}) s->InitializeValues(*stream_);
  const double first =
      train.Run(*state, text.samples(), clipped, 1e-2, 1).update.grad_norm;  // not clipped
  train.Run(*reference, text.samples(), exact, 1e-2, 1);
  EXPECT_EQ(state->optimizer().last_norm(), first);
  EXPECT_GT(first, clipped.clip_norm);
  // The same scale, told to an update that clips by its own norm.
  const double second = train.Gradients(*reference, text.samples()).update.grad_norm;
  EXPECT_GT(std::fabs(second / first - 1), 0.01);
  exact.clip_norm = clipped.clip_norm * second / first;
  train.Run(*reference, text.samples(), exact, 1e-2, 2);
  EXPECT_NEAR(train.Run(*state, text.samples(), clipped, 1e-2, 2).update.grad_norm, second,
              1e-12 * second);
  for (size_t p = 0; p < state->parameters().size(); ++p) {
    const auto found = GatherSegment(state->buffer(), static_cast<int>(p), StateKind::kM,
                                     *communicator_, *stream_);
    const auto expected = GatherSegment(reference->buffer(), static_cast<int>(p), StateKind::kM,
                                        *communicator_, *stream_);
    const auto* a = reinterpret_cast<const float*>(found.data());
    const auto* b = reinterpret_cast<const float*>(expected.data());
    for (size_t i = 0; i < found.size() / sizeof(float); ++i) {
      ASSERT_NEAR(a[i], b[i], 1e-6 * std::fabs(b[i]) + 1e-12) << state->parameters()[p].name;
    }
  }
}

TEST_F(TrainerTest, GradientsThatAreNotFiniteSpoilAStepOfLayers) {
  const RepeatingText text;
  const RunSpec run = LayerRun(true, 4, ModelFamily::kLlama);
  auto state = MakeState(run, 1);
  state->InitializeValues(*stream_);
  TrainStep train(run.phases[1].batch, backend_, *stream_);
  train.Run(*state, text.samples(), {}, 1e-2, 1);
  const double norm = state->optimizer().last_norm();
  state->buffer().Values(0).As<float>()[0] = std::nanf("");
  const StepResult result = train.Run(*state, text.samples(), {}, 1e-2, 2);
  EXPECT_TRUE(result.update.skipped && result.update.spoiled);
  EXPECT_EQ(state->optimizer().last_norm(), norm);
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
