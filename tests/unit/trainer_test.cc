// The trainer's pieces that need no run: optimizer, state moves, resuming, sampling.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/unit/training_state_testing.h"
#include "trainer/generator.h"
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
