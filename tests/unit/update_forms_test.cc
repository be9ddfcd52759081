// Updates in other forms than fp32 after the whole backward pass: state in fewer bytes, and layer
// by layer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/base/rng.h"
#include "tests/unit/training_state_testing.h"
#include "trainer/planner.h"

namespace filigree {
namespace {

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
  const RunSpec whole = LayerRun(true, 2, ModelFamily::kLlama);
  const RunSpec slots = LayerRun(true, 4, ModelFamily::kLlama);
  const auto state = MakeState(slots, 1);
  const auto held = static_cast<int64_t>(device_.memory_usage().bytes_by_kind.at("grads"));
  std::vector<int64_t> units(slots.model.layers + 2, 0);
  for (const Bucket& bucket : state->buffer().layout().buckets()) {
    units[bucket.unit] += 4 * bucket.count;
  }
  EXPECT_EQ(held, *std::max_element(units.begin(), units.end()));
  EXPECT_EQ(PlanRun(slots, 1, backend_).phases[1].memory_bytes.at("grads"), held);
  EXPECT_GT(PlanRun(whole, 1, backend_).phases[1].memory_bytes.at("grads"), held);
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

}  // namespace
}  // namespace filigree
