#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

template <typename T>
class CpuDenseTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuDenseTest, FloatTypes);

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

}  // namespace
}  // namespace filigree
