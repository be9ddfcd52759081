#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

template <typename T>
class CpuDenseTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuDenseTest, FloatTypes);
class CpuDenseGradientTest : public CpuTest {};

// Operands that overlap (x of every product) or interleave by columns, and outputs that do.
TYPED_TEST(CpuDenseTest, BatchesAreProductsOneByOne) {
  using T = TypeParam;
  constexpr int64_t kCount = 3, kM = 5, kN = 4, kK = 6;
  auto x = TestMatrix<T>::Random(kM, kK, 1);
  auto weights = TestMatrix<T>::Random(kCount * kN + 2 * kCount, kK, 2);  // 2 rows between them
  auto out = TestMatrix<T>::Random(kM, kCount * kN, 3);
  const auto before = out;
  this->backend_.MatMul({.a = x.view(),
                         .b = weights.view().Rows(0, kN),
                         .out = out.view().Cols(0, kN),
                         .transpose_b = true,
                         .accumulate = true,
                         .scale = 0.5,
                         .batch = {.count = kCount, .a = 0, .b = (kN + 2) * kK, .out = kN}},
                        *this->stream_);
  const auto& cx = x;
  const auto& cw = weights;
  ExpectNear(
      out,
      [&](int64_t i, int64_t j) {
        double sum = before(i, j);
        for (int64_t l = 0; l < kK; ++l) sum += 0.5 * cx(i, l) * cw(j / kN * (kN + 2) + j % kN, l);
        return sum;
      },
      4.0);
}

TYPED_TEST(CpuDenseTest, MatMulInAllForms) {
  using T = TypeParam;
  // The last two are large enough for threads to divide rows, and columns.
  const int64_t shapes[][3] = {{1, 1, 1},    {3, 5, 7}, {1, 33, 64},     {64, 1, 9},
                               {65, 130, 3}, {4, 4, 0}, {180, 130, 100}, {130, 180, 100}};
  for (const auto& [m, n, k] : shapes) {
    for (int form = 0; form < 32; ++form) {
      const bool transpose_a = form & 1, transpose_b = form & 2, accumulate = form & 4;
      const bool biased = form & 8;
      const double scale = form & 16 ? -0.25 : 1;
      auto a = TestMatrix<T>::Random(transpose_a ? k : m, transpose_a ? m : k, 1, 3);
      auto b = TestMatrix<T>::Random(transpose_b ? n : k, transpose_b ? k : n, 2, 1);
      auto bias = TestMatrix<T>::Random(1, n, 3);
      // What an overwritten output held must not matter.
      auto out =
          accumulate ? TestMatrix<T>::Random(m, n, 4, 5) : TestMatrix<T>::Constant(m, n, NAN, 5);
      const auto before = out;
      this->backend_.MatMul({.a = a.view(),
                             .b = b.view(),
                             .out = out.view(),
                             .transpose_a = transpose_a,
                             .transpose_b = transpose_b,
                             .accumulate = accumulate,
                             .scale = scale,
                             .bias = biased ? bias.flat() : TensorView()},
                            *this->stream_);
      SCOPED_TRACE(::testing::Message() << m << " " << n << " " << k << " form " << form);
      const auto& ca = a;
      const auto& cb = b;
      ExpectNear(
          out,
          [&, k = k](int64_t i, int64_t j) {
            double sum = accumulate ? before(i, j) : 0.0;
            if (biased) sum += bias(0, j);
            for (int64_t l = 0; l < k; ++l) {
              sum +=
                  scale * (transpose_a ? ca(l, i) : ca(i, l)) * (transpose_b ? cb(j, l) : cb(l, j));
            }
            return sum;
          },
          4.0);
    }
  }
}

// Against the operations it stands for, one after the other.
TYPED_TEST(CpuDenseTest, MatMulEpilogues) {
  using T = TypeParam;
  const int64_t m = 37, n = 29, k = 13;
  auto a = TestMatrix<T>::Random(m, k, 1), b = TestMatrix<T>::Random(k, n, 2);
  auto bias = TestMatrix<T>::Random(1, n, 3), other = TestMatrix<T>::Random(m, n, 4, 2);
  Stream& stream = *this->stream_;
  TestMatrix<T> product(m, n), expected(m, n);
  auto out = TestMatrix<T>::Constant(m, n, NAN, 3), pre = TestMatrix<T>::Constant(m, n, NAN, 1);
  const auto same = [](TestMatrix<T>& found, TestMatrix<T>& wanted) {
    const auto& cwanted = wanted;
    ExpectNear(found, [&](int64_t i, int64_t j) { return cwanted(i, j); });
  };
  MatMulArgs args = {.a = a.view(), .b = b.view(), .out = product.view(), .bias = bias.flat()};
  this->backend_.MatMul(args, stream);

  args.out = out.view();
  args.epilogue = {.residual = other.view()};
  this->backend_.MatMul(args, stream);
  this->backend_.Add({product.view(), other.view(), expected.view()}, stream);
  same(out, expected);

  args.epilogue = {.pre_activation = pre.view()};
  this->backend_.MatMul(args, stream);
  this->backend_.Gelu({product.view(), expected.view()}, stream);
  same(out, expected);
  same(pre, product);

  args.epilogue = {.gelu_input = other.view()};
  this->backend_.MatMul(args, stream);
  this->backend_.GeluBackward({other.view(), product.view(), expected.view()}, stream);
  same(out, expected);

  auto up = TestMatrix<T>::Random(m, n, 5, 1);
  for (const bool linear : {false, true}) {
    auto dup = TestMatrix<T>::Constant(m, n, NAN, 2), expected_dup = TestMatrix<T>(m, n);
    args.epilogue = {.swiglu = {other.view(), up.view(), dup.view(), linear}};
    this->backend_.MatMul(args, stream);
    this->backend_.SwiGluBackward(
        {other.view(), up.view(), product.view(), expected.view(), expected_dup.view(), linear},
        stream);
    same(out, expected);
    same(dup, expected_dup);
  }
}

// Gate and up are halves of the output, of which SwiGLU is made as by an operation of its own.
TYPED_TEST(CpuDenseTest, MatMulMakesSwiGluOfItsOutput) {
  using T = TypeParam;
  const int64_t m = 37, half = 15, k = 13;
  auto a = TestMatrix<T>::Random(m, k, 1), b = TestMatrix<T>::Random(k, 2 * half, 2);
  auto bias = TestMatrix<T>::Random(1, 2 * half, 3);
  TestMatrix<T> product(m, 2 * half), expected(m, half);
  MatMulArgs args = {.a = a.view(), .b = b.view(), .out = product.view(), .bias = bias.flat()};
  this->backend_.MatMul(args, *this->stream_);
  for (const bool linear : {false, true}) {
    auto out = TestMatrix<T>::Constant(m, 2 * half, NAN, 3);
    auto y = TestMatrix<T>::Constant(m, half, NAN, 1);
    args.out = out.view();
    args.epilogue = {.swiglu_output = {y.view(), linear}};
    this->backend_.MatMul(args, *this->stream_);
    this->backend_.SwiGlu({product.view().Cols(0, half), product.view().Cols(half, half),
                           expected.view(), linear},
                          *this->stream_);
    const auto &cproduct = product, &cexpected = expected;
    ExpectNear(out, [&](int64_t i, int64_t j) { return cproduct(i, j); });
    ExpectNear(y, [&](int64_t i, int64_t j) { return cexpected(i, j); });
  }
}

TYPED_TEST(CpuDenseTest, NoTokensIsNoWork) {
  using T = TypeParam;
  TestMatrix<T> none(0, 8), weight(8, 8), sum(1, 8);
  this->backend_.MatMul({.a = none.view(), .b = weight.view(), .out = none.view()}, *this->stream_);
  // A weight's gradient over no tokens.
  auto grad = TestMatrix<T>::Constant(8, 8, 2);
  this->backend_.MatMul({.a = none.view(),
                         .b = none.view(),
                         .out = grad.view(),
                         .transpose_a = true,
                         .accumulate = true},
                        *this->stream_);
  ExpectNear(grad, [](int64_t, int64_t) { return 2.0; });
  this->backend_.ColumnSum({none.view(), sum.flat()}, *this->stream_);
  this->backend_.SwiGlu({none.view(), none.view(), none.view()}, *this->stream_);
  ExpectNear(sum, [](int64_t, int64_t) { return 0.0; });
}

TYPED_TEST(CpuDenseTest, ColumnSumAddsAndDoesNotDependOnThreads) {
  using T = TypeParam;
  auto in = TestMatrix<T>::Random(777, 37, 1, 2);
  const auto& cin = in;
  auto out = TestMatrix<T>::Random(1, 37, 2);
  auto again = out;
  const auto before = out;
  this->backend_.ColumnSum({in.view(), out.flat()}, *this->stream_);
  ExpectNear(
      out,
      [&](int64_t, int64_t j) {
        double sum = before(0, j);
        for (int64_t i = 0; i < 777; ++i) sum += cin(i, j);
        return sum;
      },
      4.0);
  SetCpuThreads(1);
  this->backend_.ColumnSum({in.view(), again.flat()}, *this->stream_);
  EXPECT_EQ(out.data(), again.data());
}

// Without `accumulate` gradients are what they would be on top of zero, whatever was there.
TYPED_TEST(CpuDenseTest, GradientsOverwriteWhatWasThere) {
  using T = TypeParam;
  auto x = TestMatrix<T>::Random(300, 37, 1), dy = TestMatrix<T>::Random(300, 37, 2);
  auto gain = TestMatrix<T>::Random(1, 37, 3), mean = TestMatrix<T>::Random(300, 1, 4);
  auto rstd = TestMatrix<T>::Random(300, 1, 5);
  std::vector<std::vector<T>> results;
  for (bool accumulate : {true, false}) {
    const double start = accumulate ? 0 : NAN;
    const auto vector = [&] { return TestMatrix<T>::Constant(1, 37, start); };
    auto sum = vector(), dgain = vector(), dbias = vector(), rms_dgain = vector();
    auto dx_sums = vector(), rms_dx_sums = vector(), product_sums = vector();
    auto dx = TestMatrix<T>::Random(300, 37, 6), rms_dx = dx;
    this->backend_.ColumnSum({x.view(), sum.flat(), accumulate}, *this->stream_);
    this->backend_.LayerNormBackward(
        {x.view(), dy.view(), gain.flat(), mean.flat(), rstd.flat(), dx.view(), dgain.flat(),
         dbias.flat(), accumulate, dx_sums.flat(), accumulate},
        *this->stream_);
    this->backend_.RmsNormBackward({x.view(), dy.view(), gain.flat(), rstd.flat(), rms_dx.view(),
                                    rms_dgain.flat(), accumulate, rms_dx_sums.flat(), accumulate},
                                   *this->stream_);
    TestMatrix<T> product(300, 37);
    auto weight = TestMatrix<T>::Random(37, 37, 7);
    this->backend_.MatMul({.a = x.view(),
                           .b = weight.view(),
                           .out = product.view(),
                           .epilogue = {.gelu_input = dy.view(),
                                        .column_sums = product_sums.flat(),
                                        .accumulate_sums = accumulate}},
                          *this->stream_);
    std::vector<T> all;
    for (const auto* part :
         {&sum, &dgain, &dbias, &rms_dgain, &dx_sums, &rms_dx_sums, &product_sums}) {
      for (int64_t j = 0; j < 37; ++j) all.push_back((*part)(0, j));
    }
    results.push_back(all);
    // The sums are those of what was written beside them.
    for (auto [of, sums] :
         {std::pair{&dx, &dx_sums}, {&rms_dx, &rms_dx_sums}, {&product, &product_sums}}) {
      TestMatrix<T> expected(1, 37);
      this->backend_.ColumnSum({of->view(), expected.flat()}, *this->stream_);
      EXPECT_EQ(sums->data(), expected.data());
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TYPED_TEST(CpuDenseTest, Activations) {
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

TYPED_TEST(CpuDenseTest, BackwardOverItsInputs) {
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

TYPED_TEST(CpuDenseTest, AddMayOverwriteEitherInput) {
  using T = TypeParam;
  auto a = TestMatrix<T>::Random(300, 67, 1, 3), b = TestMatrix<T>::Random(300, 67, 2, 1);
  const auto a0 = a, b0 = b;
  this->backend_.Add({a.view(), b.view(), a.view()}, *this->stream_);
  ExpectNear(a, [&](int64_t i, int64_t j) { return a0(i, j) + b0(i, j); });
  this->backend_.Add({a.view(), b.view(), b.view()}, *this->stream_);
  ExpectNear(b, [&](int64_t i, int64_t j) { return a0(i, j) + 2 * b0(i, j); });
}

TYPED_TEST(CpuDenseTest, Norms) {
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

TYPED_TEST(CpuDenseTest, NormGradientsDoNotDependOnThreads) {
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

TEST_F(CpuDenseGradientTest, SwiGlu) {
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

TEST_F(CpuDenseGradientTest, Silu) {
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

TEST_F(CpuDenseGradientTest, Gelu) {
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

TEST_F(CpuDenseGradientTest, RmsNorm) {
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

TEST_F(CpuDenseGradientTest, LayerNorm) {
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
