// The loss with a teacher: against its formula written out, finite differences, and its edges.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

TensorView TargetsView(std::vector<int32_t>& targets) {
  return TensorView(targets.data(), DType::kI32, {static_cast<int64_t>(targets.size())});
}

// log softmax(row / temperature) in double.
template <typename T>
std::vector<double> LogSoftmax(const TestMatrix<T>& logits, int64_t row, int64_t vocab,
                               double temperature) {
  double max = logits(row, 0), sum = 0;
  for (int64_t j = 1; j < vocab; ++j) max = std::max<double>(max, logits(row, j));
  for (int64_t j = 0; j < vocab; ++j) sum += std::exp((logits(row, j) - max) / temperature);
  std::vector<double> result;
  for (int64_t j = 0; j < vocab; ++j) {
    result.push_back((logits(row, j) - max) / temperature - std::log(sum));
  }
  return result;
}

template <typename T>
class CpuDistillationTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuDistillationTest, FloatTypes);

TYPED_TEST(CpuDistillationTest, LossesAndGradientAreTheFormulas) {
  using T = TypeParam;
  constexpr double kScale = 0.25, kAlpha = 0.3;
  for (double temperature : {0.5, 1.0, 4.0}) {
    for (int64_t vocab : {1, 13, 1000}) {
      const int64_t rows = 21;
      auto logits = TestMatrix<T>::Random(rows, vocab + 9, 1, 3);
      auto teacher = TestMatrix<T>::Random(rows, vocab + 3, 2, 5);
      std::vector<int32_t> targets(rows);
      for (int64_t i = 0; i < rows; ++i) {
        // Padding takes no part.
        for (int64_t j = vocab; j < vocab + 9; ++j) {
          logits(i, j) = std::numeric_limits<T>::quiet_NaN();
        }
        for (int64_t j = vocab; j < vocab + 3; ++j) teacher(i, j) = T(1000);
        targets[i] = i % 4 == 1 ? -1 : static_cast<int32_t>(i * 7 % vocab);
      }
      const auto &before = logits, &taught = teacher;
      TestMatrix<double> ce(rows, 1), kl(rows, 1), gradient(rows, vocab + 9);
      for (int64_t i = 0; i < rows; ++i) {
        if (targets[i] < 0) continue;
        const auto q = LogSoftmax(before, i, vocab, 1),
                   qt = LogSoftmax(before, i, vocab, temperature);
        const auto pt = LogSoftmax(taught, i, vocab, temperature);
        ce(i, 0) = -q[targets[i]];
        for (int64_t j = 0; j < vocab; ++j) {
          kl(i, 0) += temperature * temperature * std::exp(pt[j]) * (pt[j] - qt[j]);
          gradient(i, j) = kScale * ((1 - kAlpha) * (std::exp(q[j]) - (targets[i] == j ? 1 : 0)) +
                                     kAlpha * temperature * (std::exp(qt[j]) - std::exp(pt[j])));
        }
      }
      TestMatrix<T> losses(rows, 1), divergences(rows, 1);
      auto unchanged = logits;
      DistillationLossArgs args = {.logits = unchanged.view(),
                                   .teacher_logits = teacher.view(),
                                   .targets = TargetsView(targets),
                                   .losses = losses.flat(),
                                   .divergences = divergences.flat(),
                                   .vocab_size = vocab,
                                   .temperature = temperature,
                                   .alpha = kAlpha};
      const auto &cce = ce, &ckl = kl, &cgradient = gradient;
      this->backend_.DistillationLoss(args, *this->stream_);
      ExpectNear(losses, [&](int64_t i, int64_t) { return cce(i, 0); });
      ExpectNear(divergences, [&](int64_t i, int64_t) { return ckl(i, 0); });
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < vocab; ++j) ASSERT_EQ(unchanged(i, j), logits(i, j));
      }
      args.logits = logits.view();
      args.loss_scale = kScale;
      this->backend_.DistillationLoss(args, *this->stream_);
      ExpectNear(losses, [&](int64_t i, int64_t) { return cce(i, 0); });
      ExpectNear(divergences, [&](int64_t i, int64_t) { return ckl(i, 0); });
      ExpectNear(logits, [&](int64_t i, int64_t j) { return cgradient(i, j); });
    }
  }
}

TEST_F(CpuTest, DistillationGradientAgreesWithDifferences) {
  auto logits = TestMatrix<double>::Random(5, 11, 1, 2);
  auto teacher = TestMatrix<double>::Random(5, 9, 2, 2);
  std::vector<int32_t> targets = {0, 8, -1, 3, 3};
  TestMatrix<double> losses(5, 1), divergences(5, 1);
  const auto args = [&](TestMatrix<double>& z, double scale) {
    return DistillationLossArgs{.logits = z.view(),
                                .teacher_logits = teacher.view(),
                                .targets = TargetsView(targets),
                                .losses = losses.flat(),
                                .divergences = divergences.flat(),
                                .vocab_size = 9,
                                .temperature = 3,
                                .alpha = 0.6,
                                .loss_scale = scale};
  };
  auto gradient = logits;
  backend_.DistillationLoss(args(gradient, 0.5), *stream_);
  const auto ones = TestMatrix<double>::Constant(5, 1, 1);
  const auto loss = [&] {
    backend_.DistillationLoss(args(logits, 0), *stream_);
    return 0.5 * (0.4 * WeightedSum(losses, ones) + 0.6 * WeightedSum(divergences, ones));
  };
  ExpectIsGradient(loss, logits, gradient, "logits");
}

// A student that is its teacher has nothing to learn from it, whatever the temperature.
TYPED_TEST(CpuDistillationTest, ATeacherEqualToTheStudentTeachesNothing) {
  using T = TypeParam;
  auto logits = TestMatrix<T>::Random(4, 300, 1);
  auto teacher = logits;
  std::vector<int32_t> targets = {1, 299, 0, 7};
  TestMatrix<T> losses(4, 1), divergences(4, 1);
  this->backend_.DistillationLoss({.logits = logits.view(),
                                   .teacher_logits = teacher.view(),
                                   .targets = TargetsView(targets),
                                   .losses = losses.flat(),
                                   .divergences = divergences.flat(),
                                   .vocab_size = 300,
                                   .temperature = 2,
                                   .alpha = 1,
                                   .loss_scale = 1},
                                  *this->stream_);
  ExpectNear(divergences, [](int64_t, int64_t) { return 0.0; });
  ExpectNear(logits, [](int64_t, int64_t) { return 0.0; });
}

// Logits far from zero, whose exponentials overflow, and a teacher certain of one token.
TYPED_TEST(CpuDistillationTest, LargeLogits) {
  using T = TypeParam;
  TestMatrix<T> logits(1, 40), teacher(1, 40), losses(1, 1), divergences(1, 1);
  for (int64_t j = 0; j < 40; ++j) {
    logits(0, j) = T(900 + j % 3);
    teacher(0, j) = j == 5 ? T(-900) : T(-2000);
  }
  std::vector<int32_t> targets = {5};
  this->backend_.DistillationLoss({.logits = logits.view(),
                                   .teacher_logits = teacher.view(),
                                   .targets = TargetsView(targets),
                                   .losses = losses.flat(),
                                   .divergences = divergences.flat(),
                                   .vocab_size = 40,
                                   .temperature = 1,
                                   .alpha = 0.5},
                                  *this->stream_);
  // KL from certainty is the cross-entropy of its token.
  EXPECT_GT(losses(0, 0), 1);
  EXPECT_NEAR(divergences(0, 0), losses(0, 0), 1e-3);
}

TEST_F(CpuTest, DistillationKeepsNaN) {
  auto logits = TestMatrix<float>::Random(1, 40, 1), teacher = TestMatrix<float>::Random(1, 40, 2);
  teacher(0, 17) = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> targets = {3};
  TestMatrix<float> losses(1, 1), divergences(1, 1);
  backend_.DistillationLoss({.logits = logits.view(),
                             .teacher_logits = teacher.view(),
                             .targets = TargetsView(targets),
                             .losses = losses.flat(),
                             .divergences = divergences.flat(),
                             .vocab_size = 40,
                             .temperature = 2,
                             .alpha = 0.5,
                             .loss_scale = 1},
                            *stream_);
  EXPECT_FALSE(std::isnan(losses(0, 0)));
  EXPECT_TRUE(std::isnan(divergences(0, 0)));
  EXPECT_TRUE(std::isnan(logits(0, 3)));
}

}  // namespace
}  // namespace filigree
