// GELU's derivative in codes of a byte: the quantiser, and the CPU's operations that make and read
// codes.
#include <cmath>

#include "kernels/base/gelu_code.h"
#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

template <typename T>
class CpuGeluCodeTest : public TypedCpuTest<T> {
 protected:
  // gelu'(x) times dy.
  TestMatrix<T> Exact(TestMatrix<T>& x, TestMatrix<T>& dy) {
    TestMatrix<T> dx(x.rows(), x.cols());
    this->backend_.GeluBackward({x.view(), dy.view(), dx.view()}, *this->stream_);
    return dx;
  }
};
TYPED_TEST_SUITE(CpuGeluCodeTest, FloatTypes);

// A matrix of codes with rows that lie further apart.
struct Codes {
  Codes(int64_t rows, int64_t cols)
      : rows(rows), cols(cols), stride(cols + 3), data(rows * stride, 0x5A) {}
  TensorView view() { return TensorView::Matrix(data.data(), DType::kU8, rows, cols, stride); }
  uint8_t operator()(int64_t i, int64_t j) const { return data[i * stride + j]; }
  bool GapsAreIntact() const {
    for (size_t i = 0; i < data.size(); ++i) {
      if (static_cast<int64_t>(i) % stride >= cols && data[i] != 0x5A) return false;
    }
    return true;
  }
  int64_t rows, cols, stride;
  std::vector<uint8_t> data;
};

TEST(GeluCodeTest, EveryCodeStandsForItself) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(EncodeGeluDerivative(DecodeGeluDerivative(static_cast<uint8_t>(code))), code);
  }
  for (double exact : {0.0, 0.5, 1.0}) {
    EXPECT_EQ(DecodeGeluDerivative(EncodeGeluDerivative(exact)), exact);
  }
  EXPECT_EQ(EncodeGeluDerivative(-9), 0);
  EXPECT_EQ(EncodeGeluDerivative(9), 255);
}

// The derivative's whole range, its two extrema included, without saturation.
TYPED_TEST(CpuGeluCodeTest, IsWithinHalfAStepOfTheDerivative) {
  using T = TypeParam;
  constexpr int64_t kPoints = 4001;
  TestMatrix<T> x(3, kPoints), y(3, kPoints), plain(3, kPoints);
  x.Fill([](int64_t i, int64_t j) { return (i == 0 ? 1e-3 : 1.0) * (0.005 * static_cast<double>(j) - 10); });
  auto ones = TestMatrix<T>::Constant(3, kPoints, 1);
  Codes codes(3, kPoints);
  this->backend_.Gelu({.x = x.view(), .y = y.view(), .codes = codes.view()}, *this->stream_);
  this->backend_.Gelu({.x = x.view(), .y = plain.view()}, *this->stream_);
  EXPECT_EQ(y.data(), plain.data());
  EXPECT_TRUE(codes.GapsAreIntact());
  const TestMatrix<T> exact = this->Exact(x, ones);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < kPoints; ++j) {
      ASSERT_NEAR(DecodeGeluDerivative(codes(i, j)), exact(i, j),
                  0.5 / kGeluCodesPerUnit + kTolerance<T>)
          << x(i, j);
    }
  }
  // In place.
  this->backend_.Gelu({.x = x.view(), .y = x.view(), .codes = codes.view()}, *this->stream_);
  EXPECT_EQ(x.data(), plain.data());
}

// As operations one after the other, wherever a product's epilogue has codes.
TYPED_TEST(CpuGeluCodeTest, ProductsMakeAndReadThem) {
  using T = TypeParam;
  Stream& stream = *this->stream_;
  const int64_t m = 37, n = 29, k = 13;
  auto a = TestMatrix<T>::Random(m, k, 1), b = TestMatrix<T>::Random(k, n, 2);
  auto bias = TestMatrix<T>::Random(1, n, 3), residual = TestMatrix<T>::Random(m, n, 4);
  TestMatrix<T> product(m, n), found(m, n), expected(m, n);
  Codes codes(m, n), expected_codes(m, n);
  MatMulArgs args = {.a = a.view(),
                     .b = b.view(),
                     .out = product.view(),
                     .bias = bias.flat(),
                     .epilogue = {.residual = residual.view()}};
  this->backend_.MatMul(args, stream);
  args.out = found.view();
  args.epilogue.pre_activation = codes.view();
  this->backend_.MatMul(args, stream);
  this->backend_.Gelu({product.view(), expected.view(), expected_codes.view()}, stream);
  EXPECT_EQ(found.data(), expected.data());
  EXPECT_EQ(codes.data, expected_codes.data);

  TestMatrix<T> sums(1, n), expected_sums(1, n);
  args.epilogue = {.residual = residual.view(),
                   .gelu_input = codes.view(),
                   .column_sums = sums.flat()};
  this->backend_.MatMul(args, stream);
  const auto& cproduct = product;
  ExpectNear(found, [&](int64_t i, int64_t j) {
    return cproduct(i, j) * DecodeGeluDerivative(codes(i, j));
  });
  this->backend_.ColumnSum({found.view(), expected_sums.flat()}, stream);
  EXPECT_EQ(sums.data(), expected_sums.data());
}

}  // namespace
}  // namespace filigree
