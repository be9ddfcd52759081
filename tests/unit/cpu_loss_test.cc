// Embedding, cross-entropy and the optimizer.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/simd_kernels.h"
#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

TensorView TokensView(std::vector<int32_t>& tokens) {
  return TensorView(tokens.data(), DType::kI32, {static_cast<int64_t>(tokens.size())});
}

template <typename T>
class CpuLossTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuLossTest, FloatTypes);

TYPED_TEST(CpuLossTest, EmbeddingWithAndWithoutPositions) {
  using T = TypeParam;
  std::vector<int32_t> tokens = {3, 0, 3, 10, 1, 3};
  auto table = TestMatrix<T>::Random(11, 37, 1, 3), positions = TestMatrix<T>::Random(5, 37, 2, 1);
  const auto &ctable = table, &cpositions = positions;
  TestMatrix<T> out(6, 37, 2);
  this->backend_.Embedding({TokensView(tokens), table.view(), TensorView(), out.view(), 3},
                           *this->stream_);
  ExpectNear(out, [&](int64_t t, int64_t j) { return ctable(tokens[t], j); });
  this->backend_.Embedding({TokensView(tokens), table.view(), positions.view(), out.view(), 3},
                           *this->stream_);
  ExpectNear(out,
             [&](int64_t t, int64_t j) { return ctable(tokens[t], j) + cpositions(t % 3, j); });

  // Backward adds each occurrence, wherever the threads divide.
  for (int threads : {1, 3}) {
    SetCpuThreads(threads);
    auto dout = TestMatrix<T>::Random(6, 37, 3, 1);
    auto dtable = TestMatrix<T>::Constant(11, 37, 1, 2),
         dpositions = TestMatrix<T>::Constant(5, 37, 2, 2);
    const auto& cdout = dout;
    this->backend_.EmbeddingBackward(
        {TokensView(tokens), dout.view(), dtable.view(), dpositions.view(), 3}, *this->stream_);
    ExpectNear(dtable, [&](int64_t row, int64_t j) {
      double sum = 1;
      for (int64_t t = 0; t < 6; ++t) sum += tokens[t] == row ? cdout(t, j) : 0.0;
      return sum;
    });
    ExpectNear(dpositions, [&](int64_t p, int64_t j) {
      return p < 3 ? 2 + cdout(p, j) + cdout(p + 3, j) : 2.0;
    });
  }
}

TEST_F(CpuTest, TokenBeyondTheTableIsNamed) {
  std::vector<int32_t> tokens = {11};
  TestMatrix<float> table(11, 4), out(1, 4);
  EXPECT_EXIT(
      backend_.Embedding({TokensView(tokens), table.view(), TensorView(), out.view(), 1}, *stream_),
      ::testing::ExitedWithCode(1), "token 11 of a table of 11");
}

// Rows of logits with padding columns that hold `padding`, and some masked targets.
TYPED_TEST(CpuLossTest, CrossEntropyMasksAndPads) {
  using T = TypeParam;
  for (int64_t vocab : {1, 13, 16, 1000}) {
    const int64_t cols = vocab + 9, rows = 45;
    auto logits = TestMatrix<T>::Random(rows, cols, 1, 3);
    std::vector<int32_t> targets(rows);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = vocab; j < cols; ++j) logits(i, j) = std::numeric_limits<T>::quiet_NaN();
      targets[i] = i % 4 == 1 ? -1 : static_cast<int32_t>(i * 7 % vocab);
    }
    logits(2, 0) = 300;  // its exponential overflows fp32
    if (vocab > 5) logits(3, 5) = -300;
    const auto before = logits;
    const auto log_sum = [&](int64_t i) {
      double max = before(i, 0), sum = 0;
      for (int64_t j = 1; j < vocab; ++j) max = std::max(max, before(i, j));
      for (int64_t j = 0; j < vocab; ++j) sum += std::exp(before(i, j) - max);
      return max + std::log(sum);
    };
    const auto loss = [&](int64_t i, int64_t) {
      return targets[i] < 0 ? 0.0 : log_sum(i) - before(i, targets[i]);
    };
    TestMatrix<T> losses(rows, 1);
    this->backend_.CrossEntropy({logits.view(), TokensView(targets), losses.flat(), vocab, 0.0},
                                *this->stream_);
    ExpectNear(losses, loss);
    // Evaluation leaves the logits alone.
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < vocab; ++j) ASSERT_EQ(logits(i, j), static_cast<T>(before(i, j)));
    }
    this->backend_.CrossEntropy({logits.view(), TokensView(targets), losses.flat(), vocab, 0.25},
                                *this->stream_);
    ExpectNear(losses, loss);
    ExpectNear(logits, [&](int64_t i, int64_t j) {
      if (j >= vocab || targets[i] < 0) return 0.0;
      return 0.25 * (std::exp(before(i, j) - log_sum(i)) - (targets[i] == j ? 1 : 0));
    });
  }
}

TEST_F(CpuTest, CrossEntropyGradientAgreesWithDifferences) {
  auto logits = TestMatrix<double>::Random(5, 11, 1, 2);
  std::vector<int32_t> targets = {0, 8, -1, 3, 3};
  TestMatrix<double> losses(5, 1);
  auto gradient = logits;
  backend_.CrossEntropy({gradient.view(), TokensView(targets), losses.flat(), 9, 0.5}, *stream_);
  const auto loss = [&] {
    backend_.CrossEntropy({logits.view(), TokensView(targets), losses.flat(), 9, 0.0}, *stream_);
    return 0.5 * WeightedSum(losses, TestMatrix<double>::Constant(5, 1, 1));
  };
  ExpectIsGradient(loss, logits, gradient, "logits");
}

TYPED_TEST(CpuLossTest, ExpIsAccurateAndKeepsTheEdges) {
  using T = TypeParam;
  const auto exp_of = [](double x) {
    const T value = static_cast<T>(x);
    return static_cast<double>(Simd<T>().exp_sum(&value, T(1), T(0), nullptr, 1));
  };
  for (double x = -80; x < 88; x += 0.0137) {
    const double want = std::exp(static_cast<double>(static_cast<T>(x)));
    ASSERT_NEAR(exp_of(x) / want, 1.0, 2 * std::numeric_limits<T>::epsilon()) << x;
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(exp_of(0), 1.0);
  EXPECT_GT(exp_of(88.7), 3e38);
  EXPECT_LT(exp_of(88.7), 3.5e38);
  EXPECT_EQ(exp_of(1e4), kInfinity);
  EXPECT_EQ(exp_of(kInfinity), kInfinity);
  EXPECT_EQ(exp_of(-1e4), 0.0);
  EXPECT_EQ(exp_of(-kInfinity), 0.0);
  EXPECT_TRUE(std::isnan(exp_of(NAN)));
}

// A non-finite loss must be seen, not smoothed over.
TEST_F(CpuTest, CrossEntropyKeepsNaN) {
  auto logits = TestMatrix<float>::Random(1, 40, 1);
  logits(0, 17) = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> targets = {3};
  TestMatrix<float> losses(1, 1);
  backend_.CrossEntropy({logits.view(), TokensView(targets), losses.flat(), 40, 0.0}, *stream_);
  EXPECT_TRUE(std::isnan(losses(0, 0)));
  logits(0, 17) = std::numeric_limits<float>::infinity();
  backend_.CrossEntropy({logits.view(), TokensView(targets), losses.flat(), 40, 0.0}, *stream_);
  EXPECT_TRUE(std::isnan(losses(0, 0)));
}

TYPED_TEST(CpuLossTest, AdamWAgreesWithTheFormula) {
  using T = TypeParam;
  const int64_t n = 70001;
  auto master = TestMatrix<T>::Random(1, n, 1), grads = TestMatrix<T>::Random(1, n, 2);
  TestMatrix<T> values(1, n), m(1, n), v(1, n);
  TestMatrix<double> w64(1, n), m64(1, n), v64(1, n);
  const auto &cmaster = master, &cgrads = grads;
  w64.Fill([&](int64_t i, int64_t j) { return cmaster(i, j); });
  auto scale = TestMatrix<float>::Constant(1, 1, 0.5);
  AdamWArgs args = {.values = values.flat(),
                    .master = master.flat(),
                    .grads = grads.flat(),
                    .m = m.flat(),
                    .v = v.flat(),
                    .scale = scale.flat(),
                    .lr = 0.01,
                    .beta1 = 0.8,
                    .beta2 = 0.9,
                    .epsilon = 1e-6,
                    .weight_decay = 0.1};
  for (int64_t step = 1; step <= 3; ++step) {
    args.step = step;
    this->backend_.AdamW(args, *this->stream_);
    for (int64_t j = 0; j < n; ++j) {
      const double g = cgrads(0, j) * 0.5;
      m64(0, j) = 0.8 * m64(0, j) + 0.2 * g;
      v64(0, j) = 0.9 * v64(0, j) + 0.1 * g * g;
      const double m_hat = m64(0, j) / (1 - std::pow(0.8, step));
      const double v_hat = v64(0, j) / (1 - std::pow(0.9, step));
      w64(0, j) -= 0.01 * (m_hat / (std::sqrt(v_hat) + 1e-6) + 0.1 * w64(0, j));
    }
    const auto &cw = w64, &cm = m64, &cv = v64;
    // 1e-6 of the step of 0.01 must show: far below one rounding of w in the comparison's scale.
    ExpectNear(
        master, [&](int64_t, int64_t j) { return cw(0, j); }, 0.05);
    ExpectNear(
        m, [&](int64_t, int64_t j) { return cm(0, j); }, 0.05);
    ExpectNear(
        v, [&](int64_t, int64_t j) { return cv(0, j); }, 0.05);
    EXPECT_EQ(values.data(), master.data());
  }
  // Where the clip factor is not finite nothing is written; values may be the master itself.
  const auto kept = master, kept_m = m, kept_v = v;
  for (float bad : {INFINITY, NAN}) {
    scale(0, 0) = bad;
    this->backend_.AdamW(args, *this->stream_);
  }
  ExpectNear(
      master, [&](int64_t i, int64_t j) { return kept(i, j); }, 0.0);
  ExpectNear(
      m, [&](int64_t i, int64_t j) { return kept_m(i, j); }, 0.0);
  ExpectNear(
      v, [&](int64_t i, int64_t j) { return kept_v(i, j); }, 0.0);
  scale(0, 0) = 0.5;
  auto shared = kept, m2 = kept_m, v2 = kept_v;
  this->backend_.AdamW(args, *this->stream_);
  args.values = args.master = shared.flat();
  args.m = m2.flat();
  args.v = v2.flat();
  this->backend_.AdamW(args, *this->stream_);
  EXPECT_EQ(shared.data(), master.data());
}

TYPED_TEST(CpuLossTest, SumOfSquaresIsExactAndAdds) {
  using T = TypeParam;
  for (int64_t n : {0, 1, 9, 70001}) {
    TestMatrix<T> in(1, n);
    // Small integers: their squares sum exactly in double, beyond fp32's integers.
    in.Fill([](int64_t, int64_t j) { return j % 101; });
    double want = 5;
    for (int64_t j = 0; j < n; ++j) want += static_cast<double>(j % 101) * (j % 101);
    for (int threads : {1, 3}) {
      SetCpuThreads(threads);
      auto out = TestMatrix<double>::Constant(1, 1, 5);
      this->backend_.SumOfSquares({in.flat(), out.flat()}, *this->stream_);
      EXPECT_EQ(out(0, 0), want) << n;
    }
  }
}

TYPED_TEST(CpuLossTest, SumOfSquaresDoesNotDependOnThreads) {
  using T = TypeParam;
  auto in = TestMatrix<T>::Random(1, 300001, 1);
  std::vector<double> sums;
  for (int threads : {1, 2, 3}) {
    SetCpuThreads(threads);
    TestMatrix<double> out(1, 1);
    this->backend_.SumOfSquares({in.flat(), out.flat()}, *this->stream_);
    sums.push_back(out(0, 0));
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TYPED_TEST(CpuLossTest, ClipScaleIsTheFactorToTheNorm) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto scale_of = [&](double sum_of_squares, double clip_norm) {
    auto sum = TestMatrix<double>::Constant(1, 1, sum_of_squares);
    TestMatrix<float> scale(1, 1);
    this->backend_.ClipScale({sum.flat(), scale.flat(), clip_norm}, *this->stream_);
    return scale(0, 0);
  };
  EXPECT_EQ(scale_of(16, 1), 0.25f);
  EXPECT_EQ(scale_of(9, 2), static_cast<float>(2.0 / 3.0));
  EXPECT_EQ(scale_of(16, 4), 1.0f);
  EXPECT_EQ(scale_of(16, 5), 1.0f);
  EXPECT_EQ(scale_of(16, 0), 1.0f);  // no clipping
  EXPECT_EQ(scale_of(0, 1), 1.0f);
  EXPECT_TRUE(std::isnan(scale_of(infinity, 1)));
  EXPECT_TRUE(std::isnan(scale_of(infinity, 0)));
  EXPECT_TRUE(std::isnan(scale_of(std::nan(""), 0)));
}

// As Device::Record needs it: the scale is what the array holds when the operation runs.
TYPED_TEST(CpuLossTest, LossScaleMayBeInMemory) {
  using T = TypeParam;
  const auto run = [&](double loss_scale, ConstTensorView in_memory) {
    auto logits = TestMatrix<T>::Random(3, 8, 1);
    const int32_t targets[] = {1, -1, 6};
    TestMatrix<T> losses(1, 3);
    this->backend_.CrossEntropy({.logits = logits.view(),
                                 .targets = ConstTensorView(targets, DType::kI32, {3}),
                                 .losses = losses.flat(),
                                 .vocab_size = 7,
                                 .loss_scale = loss_scale,
                                 .loss_scale_on_device = in_memory},
                                *this->stream_);
    return logits.data();
  };
  auto quarter = TestMatrix<float>::Constant(1, 1, 0.25f);
  EXPECT_EQ(run(1, quarter.flat()), run(0.25, {}));
  EXPECT_EQ(run(0, quarter.flat()), run(0, {}));  // evaluation: logits stay
  EXPECT_NE(run(1, quarter.flat()), run(1, {}));
}

}  // namespace
}  // namespace filigree
