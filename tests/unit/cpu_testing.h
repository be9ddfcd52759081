// What the CPU backend's tests share: strided matrices with planted padding, comparison, and
// central finite differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/parallel.h"

namespace filigree {

// A matrix whose rows lie `gap` elements further apart than they are long. The gaps hold NaN,
// which no operation may read into a result or overwrite.
template <typename T>
class TestMatrix {
 public:
  TestMatrix(int64_t rows, int64_t cols, int64_t gap = 0)
      : rows_(rows), cols_(cols), stride_(cols + gap), data_(rows * stride_, Hole()) {
    Fill([](int64_t, int64_t) { return 0.0; });
  }
  // Standard normal elements; each purpose draws others.
  static TestMatrix Random(int64_t rows, int64_t cols, uint64_t purpose, int64_t gap = 0) {
    TestMatrix result(rows, cols, gap);
    result.Fill([&](int64_t i, int64_t j) {
      return RandomNormal(purpose, RngStream("test"), i * cols + j);
    });
    return result;
  }
  static TestMatrix Constant(int64_t rows, int64_t cols, double value, int64_t gap = 0) {
    TestMatrix result(rows, cols, gap);
    result.Fill([&](int64_t, int64_t) { return value; });
    return result;
  }

  template <typename Fn>
  void Fill(const Fn& fn) {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) (*this)(i, j) = static_cast<T>(fn(i, j));
    }
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  T& operator()(int64_t i, int64_t j) { return data_[i * stride_ + j]; }
  double operator()(int64_t i, int64_t j) const { return data_[i * stride_ + j]; }
  std::vector<T>& data() { return data_; }

  TensorView view() {
    return TensorView::Matrix(data_.data(), DTypeOf<T>::value, rows_, cols_, stride_);
  }
  // The elements as a vector; only without gaps.
  TensorView flat() { return view().Flat(); }

  bool GapsAreIntact() const {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = cols_; j < stride_; ++j) {
        if (!std::isnan(data_[i * stride_ + j])) return false;
      }
    }
    return true;
  }

 private:
  static T Hole() { return std::numeric_limits<T>::quiet_NaN(); }

  int64_t rows_, cols_, stride_;
  std::vector<T> data_;
};

// Relative to elements of about 1; sums of a few hundred of them stay within it.
template <typename T>
constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;

// got(i, j) == want(i, j) within tolerance * max(1, |want|) * scale, gaps untouched.
template <typename T, typename Want>
void ExpectNear(const TestMatrix<T>& got, const Want& want, double scale = 1.0) {
  EXPECT_TRUE(got.GapsAreIntact());
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t j = 0; j < got.cols(); ++j) {
      const double expected = want(i, j);
      // Written so that NaN fails.
      ASSERT_TRUE(std::abs(got(i, j) - expected) <=
                  kTolerance<T> * scale * std::max(1.0, std::abs(expected)))
          << "(" << i << ", " << j << "): " << got(i, j) << " instead of " << expected;
    }
  }
}

// sum of weights * x: a scalar whose gradient with respect to x is `weights`.
inline double WeightedSum(const TestMatrix<double>& x, const TestMatrix<double>& weights) {
  double sum = 0;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) sum += x(i, j) * weights(i, j);
  }
  return sum;
}

// `gradient` against central differences of `loss`, which reads x anew at every call.
inline void ExpectIsGradient(const std::function<double()>& loss, TestMatrix<double>& x,
                             const TestMatrix<double>& gradient, const char* name) {
  constexpr double kStep = 1e-5;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) {
      const double kept = x(i, j);
      x(i, j) = kept + kStep;
      const double above = loss();
      x(i, j) = kept - kStep;
      const double below = loss();
      x(i, j) = kept;
      const double slope = (above - below) / (2 * kStep);
      ASSERT_TRUE(std::abs(gradient(i, j) - slope) <= 1e-7 * std::max(1.0, std::abs(slope)))
          << name << " (" << i << ", " << j << "): " << gradient(i, j) << ", differences give "
          << slope;
    }
  }
}

// A backend with its device and stream.
class CpuTest : public ::testing::Test {
 protected:
  // Three threads, so that every split has an uneven end, whatever the machine.
  CpuTest() {
    SetCpuThreads(3);
    // Expected deaths run in a process of their own, not in a fork of a threaded one.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }

  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

// The same for tests over both element types.
template <typename T>
class TypedCpuTest : public CpuTest {};
using FloatTypes = ::testing::Types<float, double>;

}  // namespace filigree
