// Learning rates over the steps of a phase.
#include "trainer/schedule.h"

#include <gtest/gtest.h>

namespace filigree {
namespace {

ScheduleSpec Schedule(ScheduleShape shape, int64_t warmup_steps) {
  ScheduleSpec schedule;
  schedule.lr = 2.0;
  schedule.shape = shape;
  schedule.warmup_steps = warmup_steps;
  schedule.final_lr_fraction = 0.25;
  schedule.wsd_decay_fraction = 0.5;
  return schedule;
}

TEST(ScheduleTest, WarmsUpToThePeak) {
  for (ScheduleShape shape : {ScheduleShape::kCosine, ScheduleShape::kLinear,
                              ScheduleShape::kConstant, ScheduleShape::kWsd}) {
    const ScheduleSpec schedule = Schedule(shape, 4);
    EXPECT_EQ(LearningRate(schedule, 0, 100), 0.5);
    EXPECT_EQ(LearningRate(schedule, 1, 100), 1.0);
    EXPECT_EQ(LearningRate(schedule, 3, 100), 2.0);
  }
}

TEST(ScheduleTest, FallsAsItsShapeSays) {
  // 4 steps of warm-up, 8 of decay: step 7 is half way, step 11 the last.
  const ScheduleSpec cosine = Schedule(ScheduleShape::kCosine, 4);
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 7, 12), 2.0 * (0.25 + 0.75 * 0.5));
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 5, 12), 2.0 * (0.25 + 0.75 * 0.853553390593273762));
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 11, 12), 0.5);
  const ScheduleSpec linear = Schedule(ScheduleShape::kLinear, 4);
  EXPECT_DOUBLE_EQ(LearningRate(linear, 5, 12), 2.0 * (0.25 + 0.75 * 0.75));
  EXPECT_DOUBLE_EQ(LearningRate(linear, 11, 12), 0.5);
  const ScheduleSpec constant = Schedule(ScheduleShape::kConstant, 0);
  EXPECT_EQ(LearningRate(constant, 0, 12), 2.0);
  EXPECT_EQ(LearningRate(constant, 11, 12), 2.0);
}

TEST(ScheduleTest, WsdIsStableAndThenDecays) {
  const ScheduleSpec wsd = Schedule(ScheduleShape::kWsd, 2);
  EXPECT_EQ(LearningRate(wsd, 2, 12), 2.0);
  EXPECT_EQ(LearningRate(wsd, 5, 12), 2.0);  // decay covers the last 6 of 12 steps
  EXPECT_DOUBLE_EQ(LearningRate(wsd, 6, 12), 2.0 * (0.25 + 0.75 * 5 / 6));
  EXPECT_DOUBLE_EQ(LearningRate(wsd, 11, 12), 0.5);
}

TEST(ScheduleTest, AWarmUpAsLongAsThePhaseNeverFalls) {
  const ScheduleSpec cosine = Schedule(ScheduleShape::kCosine, 3);
  EXPECT_EQ(LearningRate(cosine, 2, 3), 2.0);
}

}  // namespace
}  // namespace filigree
