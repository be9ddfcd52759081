// The scaling model against steps simulated by hand, and what a run's own buckets make of it.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/model/model.h"
#include "trainer/planner.h"
#include "trainer/scaling_plan.h"
#include "trainer/state_layout.h"

namespace filigree {
namespace {

// No latency, and 1 GB/s between hosts of one rank.
LinkSpec Wire() {
  return {.network_gbps = 8, .network_latency_us = 0, .node_latency_us = 0, .gpus_per_node = 1};
}

// Payloads that take this many seconds on two ranks over Wire().
Transfer Gradient(double seconds, double at) {
  return {.collective = Collective::kReduceScatter, .bytes = 2e9 * seconds, .at = at};
}
Transfer Value(double seconds, double at) {
  return {.collective = Collective::kAllGather, .bytes = 2e9 * seconds, .at = at};
}

constexpr ComputeTimes kThreeSeconds = {.step_seconds = 3, .micro_batches = 1, .jitter = 0};

TEST(ScalingModelTest, OneRankComputesOnly) {
  const StepPrediction step =
      PredictStep(Wire(), kThreeSeconds, {.backward = {Gradient(9, 0)}, .scalar_reductions = 3}, 1);
  EXPECT_EQ(step.seconds, 3);
  EXPECT_EQ(step.efficiency, 1);
}

TEST(ScalingModelTest, GradientsQueueBehindBackward) {
  // Backward takes two seconds. The first transfer fills [0.5, 1.5], the second waits for it though
  // it was ready at 1 and ends at 1.75, the third starts at the end and is exposed.
  const StepExchange exchange = {
      .backward = {Gradient(1, 0.25), Gradient(0.25, 0.5), Gradient(0.125, 1)}};
  const StepPrediction step = PredictStep(Wire(), kThreeSeconds, exchange, 2);
  EXPECT_DOUBLE_EQ(step.exposed_gradients, 0.125);
  EXPECT_EQ(step.exposed_values, 0);
  EXPECT_DOUBLE_EQ(step.seconds, 3.125);
  EXPECT_DOUBLE_EQ(step.exchange, 1.375);
}

TEST(ScalingModelTest, AQueueThatOverflowsIsExposed) {
  const StepExchange exchange = {.backward = {Gradient(2, 0.25), Gradient(1, 0.5)}};
  EXPECT_DOUBLE_EQ(PredictStep(Wire(), kThreeSeconds, exchange, 2).exposed_gradients, 1.5);
}

TEST(ScalingModelTest, ForwardStopsForValues) {
  // Forward takes one second. It stops for 0.25 at once, does half by 0.75, where the second
  // transfer has long arrived, and stops at 0.9 of it (1.15) for the third until 1.5.
  const StepExchange exchange = {.forward = {Value(0.25, 0), Value(0.25, 0.5), Value(1, 0.9)}};
  const StepPrediction step = PredictStep(Wire(), kThreeSeconds, exchange, 2);
  EXPECT_NEAR(step.exposed_values, 0.6, 1e-12);
}

TEST(ScalingModelTest, AccumulationHidesInOneMicroBatch) {
  // The same compute in four pieces: 0.5 s of backward to hide a second of gradients in.
  ComputeTimes compute = kThreeSeconds;
  compute.micro_batches = 4;
  const StepExchange exchange = {.backward = {Gradient(1, 0)}};
  EXPECT_DOUBLE_EQ(PredictStep(Wire(), compute, exchange, 2).exposed_gradients, 0.5);
}

TEST(ScalingModelTest, JitterGrowsWithHosts) {
  // E of the largest of two and three normal numbers: 1/sqrt(pi), 1.5/sqrt(pi).
  EXPECT_EQ(ExpectedMaximum(1), 0);
  EXPECT_NEAR(ExpectedMaximum(2), 1 / std::sqrt(M_PI), 1e-6);
  EXPECT_NEAR(ExpectedMaximum(3), 1.5 / std::sqrt(M_PI), 1e-6);
  ComputeTimes compute = kThreeSeconds;
  compute.jitter = 0.01;
  EXPECT_NEAR(PredictStep(Wire(), compute, {}, 2).jitter, 0.03 / std::sqrt(M_PI), 1e-6);
}

class ScalingPlanTest : public ::testing::Test {
 protected:
  ScalingPlanTest() {
    run_.phases.resize(1);  // the sparse one
    run_.bucket_megabytes = 0.004;
  }
  StepExchange Exchange(int ranks) {
    const auto model = Model::Create(run_.model, run_.phases[0].sparsity, run_.seed, {}, backend_);
    const FlatLayout layout = LayOutParameters(model->parameters(), run_, ranks);
    return ExchangeOfStep(model->parameters(), run_.model.tied_head, layout, DType::kBF16,
                          DType::kF32, 3);
  }

  CpuDevice device_;
  CpuBackend backend_{device_};
  RunSpec run_ = OddRun();
};

TEST_F(ScalingPlanTest, TransfersAreTheRunsBuckets) {
  run_.zero_stage = 1;
  const StepExchange exchange = Exchange(4);
  ASSERT_GT(exchange.backward.size(), 4u);
  ASSERT_EQ(exchange.forward.size(), exchange.backward.size());
  double grads = 0, values = 0;
  for (size_t i = 0; i < exchange.backward.size(); ++i) {
    grads += exchange.backward[i].bytes;
    values += exchange.forward[i].bytes;
    if (i == 0) continue;
    EXPECT_GE(exchange.backward[i].at, exchange.backward[i - 1].at);
    EXPECT_GE(exchange.forward[i].at, exchange.forward[i - 1].at);
  }
  EXPECT_EQ(values, grads / 2);  // BF16 against F32
  // The head's gradient is there early, the embedding's at the end; values the other way round.
  EXPECT_LT(exchange.backward.front().at, 0.5);
  EXPECT_EQ(exchange.backward.back().at, 1);
  EXPECT_EQ(exchange.forward.front().at, 0);
  const auto model = Model::Create(run_.model, run_.phases[0].sparsity, run_.seed, {}, backend_);
  const FlatLayout layout = LayOutParameters(model->parameters(), run_, 4);
  const ExchangedBytes predicted = PredictExchangedBytes(layout, 4, DType::kBF16, DType::kF32);
  EXPECT_EQ(static_cast<int64_t>(grads), predicted.sparsified_grads + predicted.dense_grads);
  EXPECT_EQ(static_cast<int64_t>(values), predicted.sparsified_values + predicted.dense_values);
}

TEST_F(ScalingPlanTest, ZeroStageZeroReduces) {
  run_.zero_stage = 0;
  const StepExchange exchange = Exchange(4);
  EXPECT_TRUE(exchange.forward.empty());
  for (const Transfer& transfer : exchange.backward) {
    EXPECT_EQ(transfer.collective, Collective::kAllReduce);
  }
}

TEST_F(ScalingPlanTest, PointsDoubleAndEfficiencyFalls) {
  const std::vector<ScalingPoint> points = PlanScaling(run_, 1, 0.1, 0.01, backend_);
  ASSERT_EQ(points.size(), 10u);
  EXPECT_EQ(points.front().gpus, 8);
  EXPECT_EQ(points.back().gpus, 4096);
  for (size_t i = 0; i < points.size(); ++i) {
    EXPECT_GT(points[i].exchanged_bytes, 0);
    EXPECT_NEAR(points[i].step.efficiency * points[i].step.seconds, 0.1, 1e-12);
    if (i == 0) continue;
    EXPECT_LT(points[i].step.efficiency, points[i - 1].step.efficiency);
  }
}

TEST_F(ScalingPlanTest, BucketsAreChosenWhereTheConfigNamesNone) {
  run_.bucket_megabytes = 0;
  const RunPlan plan = PlanRun(run_, 8, backend_);
  EXPECT_EQ(plan.phases[0].bucket_bytes, 1'000'000);  // a tiny model
  run_.bucket_megabytes = 0.5;
  EXPECT_EQ(PlanRun(run_, 8, backend_).phases[0].bucket_bytes, 500'000);
}

}  // namespace
}  // namespace filigree
