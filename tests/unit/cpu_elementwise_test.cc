// Activations and norms of the CPU backend, and their gradients against finite differences.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

template <typename T>
class CpuElementwiseTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuElementwiseTest, FloatTypes);
class CpuElementwiseGradientTest : public CpuTest {};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TYPED_TEST(CpuElementwiseTest, Activations) {
  using T = TypeParam;
  for (int64_t cols : {1, 7, 16, 35, 128}) {
    auto x = TestMatrix<T>::Random(19, cols, 1, 3), up = TestMatrix<T>::Random(19, cols, 2, 1);
    // Also where exponentials saturate.
    x(0, 0) = 200;
    x(1, 0) = -200;
    TestMatrix<T> y(19, cols, 2);
    const auto &cx = x, &cup = up;
    this->backend_.SwiGlu({x.view(), up.view(), y.view()}, *this->stream_);
    ExpectNear(y, [&](int64_t i, int64_t j) { return cx(i, j) * Sigmoid(cx(i, j)) * cup(i, j); });
    this->backend_.SwiGlu({x.view(), up.view(), y.view(), /*linear=*/true}, *this->stream_);
    ExpectNear(y, [&](int64_t i, int64_t j) { return cx(i, j) * cup(i, j); });
    this->backend_.SwiGlu({.gate = x.view(), .y = y.view()}, *this->stream_);
    ExpectNear(y, [&](int64_t i, int64_t j) { return cx(i, j) * Sigmoid(cx(i, j)); });
    this->backend_.Gelu({x.view(), y.view()}, *this->stream_);
    ExpectNear(y, [&](int64_t i, int64_t j) {
      const double v = cx(i, j);
      const double u = std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v);
      return 0.5 * v * (1 + std::tanh(u));
    });
  }
}

TYPED_TEST(CpuElementwiseTest, BackwardOverItsInputs) {
  using T = TypeParam;
  auto gate = TestMatrix<T>::Random(9, 21, 1, 3), up = TestMatrix<T>::Random(9, 21, 2, 1);
  auto dy = TestMatrix<T>::Random(9, 21, 3, 2);
  TestMatrix<T> dgate(9, 21), dup(9, 21), dx(9, 21);
  this->backend_.SwiGluBackward({gate.view(), up.view(), dy.view(), dgate.view(), dup.view()},
                                *this->stream_);
  this->backend_.GeluBackward({gate.view(), dy.view(), dx.view()}, *this->stream_);
  auto over_dy = dy, silu_over_dy = dy, dgate_over_dy = dy;
  TestMatrix<T> dup_beside(9, 21);
  this->backend_.SwiGluBackward(
      {gate.view(), up.view(), dgate_over_dy.view(), dgate_over_dy.view(), dup_beside.view()},
      *this->stream_);
  this->backend_.GeluBackward({gate.view(), over_dy.view(), over_dy.view()}, *this->stream_);
  this->backend_.SwiGluBackward(
      {.gate = gate.view(), .dy = silu_over_dy.view(), .dgate = silu_over_dy.view()},
      *this->stream_);
  TestMatrix<T> dsilu(9, 21);
  this->backend_.SwiGluBackward({.gate = gate.view(), .dy = dy.view(), .dgate = dsilu.view()},
                                *this->stream_);
  this->backend_.SwiGluBackward({gate.view(), up.view(), dy.view(), gate.view(), up.view()},
                                *this->stream_);
  const auto &cdgate = dgate, &cdup = dup, &cdx = dx, &cdsilu = dsilu;
  ExpectNear(
      dgate_over_dy, [&](int64_t i, int64_t j) { return cdgate(i, j); }, 0.0);
  ExpectNear(
      dup_beside, [&](int64_t i, int64_t j) { return cdup(i, j); }, 0.0);
  ExpectNear(
      silu_over_dy, [&](int64_t i, int64_t j) { return cdsilu(i, j); }, 0.0);
  ExpectNear(
      gate, [&](int64_t i, int64_t j) { return cdgate(i, j); }, 0.0);
  ExpectNear(
      up, [&](int64_t i, int64_t j) { return cdup(i, j); }, 0.0);
  ExpectNear(
      over_dy, [&](int64_t i, int64_t j) { return cdx(i, j); }, 0.0);
}

TYPED_TEST(CpuElementwiseTest, AddMayOverwriteEitherInput) {
  using T = TypeParam;
  auto a = TestMatrix<T>::Random(300, 67, 1, 3), b = TestMatrix<T>::Random(300, 67, 2, 1);
  const auto a0 = a, b0 = b;
  this->backend_.Add({a.view(), b.view(), a.view()}, *this->stream_);
  ExpectNear(a, [&](int64_t i, int64_t j) { return a0(i, j) + b0(i, j); });
  this->backend_.Add({a.view(), b.view(), b.view()}, *this->stream_);
  ExpectNear(b, [&](int64_t i, int64_t j) { return a0(i, j) + 2 * b0(i, j); });
}

TYPED_TEST(CpuElementwiseTest, Norms) {
  using T = TypeParam;
  for (int64_t cols : {1, 5, 16, 48, 131}) {
    auto x = TestMatrix<T>::Random(23, cols, 1, 3);
    x.Fill([&, kept = x](int64_t i, int64_t j) { return 3 * kept(i, j) + 1; });
    auto gain = TestMatrix<T>::Random(1, cols, 2), bias = TestMatrix<T>::Random(1, cols, 3);
    TestMatrix<T> y(23, cols, 2), mean(23, 1), rstd(23, 1);
    const auto &cx = x, &cgain = gain, &cbias = bias;
    const auto mean_of = [&](int64_t i, double shift, int power) {
      double sum = 0;
      for (int64_t j = 0; j < cols; ++j) sum += std::pow(cx(i, j) - shift, power);
      return sum / cols;
    };
    this->backend_.RmsNorm({x.view(), gain.flat(), y.view(), rstd.flat(), 1e-3}, *this->stream_);
    const auto rms = [&](int64_t i) { return 1 / std::sqrt(mean_of(i, 0, 2) + 1e-3); };
    ExpectNear(rstd, [&](int64_t i, int64_t) { return rms(i); });
    ExpectNear(y, [&](int64_t i, int64_t j) { return cx(i, j) * rms(i) * cgain(0, j); });

    this->backend_.LayerNorm(
        {x.view(), gain.flat(), bias.flat(), y.view(), mean.flat(), rstd.flat(), 1e-2},
        *this->stream_);
    const auto deviation = [&](int64_t i) {
      return 1 / std::sqrt(mean_of(i, mean_of(i, 0, 1), 2) + 1e-2);
    };
    ExpectNear(mean, [&](int64_t i, int64_t) { return mean_of(i, 0, 1); });
    ExpectNear(rstd, [&](int64_t i, int64_t) { return deviation(i); });
    ExpectNear(
        y,
        [&](int64_t i, int64_t j) {
          return (cx(i, j) - mean_of(i, 0, 1)) * deviation(i) * cgain(0, j) + cbias(0, j);
        },
        10.0);
  }
}

TYPED_TEST(CpuElementwiseTest, NormGradientsDoNotDependOnThreads) {
  using T = TypeParam;
  auto x = TestMatrix<T>::Random(400, 67, 1, 3), dy = TestMatrix<T>::Random(400, 67, 2, 1);
  auto gain = TestMatrix<T>::Random(1, 67, 3), bias = gain;
  TestMatrix<T> y(400, 67), mean(400, 1), rstd(400, 1);
  this->backend_.LayerNorm({x.view(), gain.flat(), bias.flat(), y.view(), mean.flat(), rstd.flat()},
                           *this->stream_);
  std::vector<std::vector<T>> results;
  for (int threads : {1, 2, 3}) {
    SetCpuThreads(threads);
    TestMatrix<T> dx(400, 67), dgain(1, 67), dbias(1, 67);
    this->backend_.RmsNormBackward(
        {x.view(), dy.view(), gain.flat(), rstd.flat(), dx.view(), dgain.flat()}, *this->stream_);
    this->backend_.LayerNormBackward({x.view(), dy.view(), gain.flat(), mean.flat(), rstd.flat(),
                                      dx.view(), dgain.flat(), dbias.flat()},
                                     *this->stream_);
    results.push_back(dgain.data());
    results.back().insert(results.back().end(), dbias.data().begin(), dbias.data().end());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_F(CpuElementwiseGradientTest, SwiGlu) {
  auto gate = TestMatrix<double>::Random(4, 19, 1, 2), up = TestMatrix<double>::Random(4, 19, 2);
  auto dy = TestMatrix<double>::Random(4, 19, 3, 1);
  TestMatrix<double> y(4, 19), dup(4, 19, 2);
  auto dgate = TestMatrix<double>::Constant(4, 19, NAN);  // overwrites
  backend_.SwiGluBackward({gate.view(), up.view(), dy.view(), dgate.view(), dup.view()}, *stream_);
  const auto loss = [&] {
    backend_.SwiGlu({gate.view(), up.view(), y.view()}, *stream_);
    return WeightedSum(y, dy);
  };
  ExpectIsGradient(loss, gate, dgate, "dgate");
  ExpectIsGradient(loss, up, dup, "dup");
}

TEST_F(CpuElementwiseGradientTest, Silu) {
  auto x = TestMatrix<double>::Random(4, 19, 1, 2), dy = TestMatrix<double>::Random(4, 19, 3, 1);
  TestMatrix<double> y(4, 19);
  auto dx = TestMatrix<double>::Constant(4, 19, NAN);  // overwrites
  backend_.SwiGluBackward({.gate = x.view(), .dy = dy.view(), .dgate = dx.view()}, *stream_);
  const auto loss = [&] {
    backend_.SwiGlu({.gate = x.view(), .y = y.view()}, *stream_);
    return WeightedSum(y, dy);
  };
  ExpectIsGradient(loss, x, dx, "dx");
}

TEST_F(CpuElementwiseGradientTest, Gelu) {
  auto x = TestMatrix<double>::Random(4, 19, 1, 2), dy = TestMatrix<double>::Random(4, 19, 3, 1);
  TestMatrix<double> y(4, 19);
  auto dx = TestMatrix<double>::Constant(4, 19, NAN);  // overwrites
  backend_.GeluBackward({x.view(), dy.view(), dx.view()}, *stream_);
  const auto loss = [&] {
    backend_.Gelu({x.view(), y.view()}, *stream_);
    return WeightedSum(y, dy);
  };
  ExpectIsGradient(loss, x, dx, "dx");
}

// Gradients start from something, which they must add to.
TestMatrix<double> Minus(const TestMatrix<double>& a, const TestMatrix<double>& b) {
  TestMatrix<double> result(a.rows(), a.cols());
  result.Fill([&](int64_t i, int64_t j) { return a(i, j) - b(i, j); });
  return result;
}

TEST_F(CpuElementwiseGradientTest, RmsNorm) {
  auto x = TestMatrix<double>::Random(5, 19, 1, 2), dy = TestMatrix<double>::Random(5, 19, 2, 1);
  auto gain = TestMatrix<double>::Random(1, 19, 3);
  TestMatrix<double> y(5, 19), rstd(5, 1);
  auto dx = TestMatrix<double>::Random(5, 19, 4, 3), dgain = TestMatrix<double>::Random(1, 19, 5);
  const auto dx0 = dx, dgain0 = dgain;
  const auto loss = [&] {
    backend_.RmsNorm({x.view(), gain.flat(), y.view(), rstd.flat(), 1e-2}, *stream_);
    return WeightedSum(y, dy);
  };
  loss();
  backend_.RmsNormBackward({x.view(), dy.view(), gain.flat(), rstd.flat(), dx.view(), dgain.flat()},
                           *stream_);
  EXPECT_TRUE(dx.GapsAreIntact());
  ExpectIsGradient(loss, x, Minus(dx, dx0), "dx");
  ExpectIsGradient(loss, gain, Minus(dgain, dgain0), "dgain");
}

TEST_F(CpuElementwiseGradientTest, LayerNorm) {
  auto x = TestMatrix<double>::Random(5, 19, 1, 2), dy = TestMatrix<double>::Random(5, 19, 2, 1);
  auto gain = TestMatrix<double>::Random(1, 19, 3), bias = TestMatrix<double>::Random(1, 19, 6);
  TestMatrix<double> y(5, 19), mean(5, 1), rstd(5, 1);
  auto dx = TestMatrix<double>::Random(5, 19, 4, 3), dgain = TestMatrix<double>::Random(1, 19, 5);
  auto dbias = TestMatrix<double>::Random(1, 19, 7);
  const auto dx0 = dx, dgain0 = dgain, dbias0 = dbias;
  const auto loss = [&] {
    backend_.LayerNorm(
        {x.view(), gain.flat(), bias.flat(), y.view(), mean.flat(), rstd.flat(), 1e-2}, *stream_);
    return WeightedSum(y, dy);
  };
  loss();
  backend_.LayerNormBackward({x.view(), dy.view(), gain.flat(), mean.flat(), rstd.flat(), dx.view(),
                              dgain.flat(), dbias.flat()},
                             *stream_);
  EXPECT_TRUE(dx.GapsAreIntact());
  ExpectIsGradient(loss, x, Minus(dx, dx0), "dx");
  ExpectIsGradient(loss, gain, Minus(dgain, dgain0), "dgain");
  ExpectIsGradient(loss, bias, Minus(dbias, dbias0), "dbias");
}

}  // namespace
}  // namespace filigree
