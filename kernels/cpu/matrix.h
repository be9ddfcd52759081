// Typed matrices over checked views, dtype dispatch, and the OpenBLAS product.
#pragma once

#include <cblas.h>

#include <cstdint>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/tensor_view.h"

namespace filigree {

// Calls fn(T()) with the float or double that `dtype` stands for.
template <typename Fn>
void DispatchFloat(DType dtype, const Fn& fn) {
  CHECK(dtype == DType::kF32 || dtype == DType::kF64)
      << "the CPU computes in F32 or F64, not " << NameOf(dtype);
  if (dtype == DType::kF32) {
    fn(float());
  } else {
    fn(double());
  }
}

// The elements of a view, row by row.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;
  T* row(int64_t i) const { return data + i * stride; }
};

// The view as a [rows, cols] matrix of T; anything else is a broken invariant. `name` is the
// argument's name in kernels/backend.h.
template <typename T, typename Pointer>
auto AsMatrix(const BasicTensorView<Pointer>& view, int64_t rows, int64_t cols, const char* name) {
  using Element = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const T, T>;
  CHECK(view.rows() == rows && view.cols() == cols)
      << name << " is [" << view.rows() << ", " << view.cols() << "], not [" << rows << ", " << cols
      << "]";
  CHECK(view.dtype() == DTypeOf<T>::value)
      << name << " holds " << NameOf(view.dtype()) << ", not " << NameOf(DTypeOf<T>::value);
  return Matrix<Element>{view.template As<T>(), rows, cols, view.row_stride()};
}

// The view as `count` contiguous elements of T.
template <typename T, typename Pointer>
auto AsVector(const BasicTensorView<Pointer>& view, int64_t count, const char* name) {
  CHECK(view.size() == count && view.contiguous())
      << name << " has " << view.size() << " elements, not " << count << " contiguous ones";
  CHECK(view.dtype() == DTypeOf<T>::value)
      << name << " holds " << NameOf(view.dtype()) << ", not " << NameOf(DTypeOf<T>::value);
  return view.template As<T>();
}

// c[m, n] = alpha op(a) op(b) + beta c on the calling thread; a c that beta = 0 drops may hold NaN.
inline void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                 const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
                 int64_t ldc) {
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
              transpose_b ? CblasTrans : CblasNoTrans, m, n, k, alpha, a, lda, b, ldb, beta, c,
              ldc);
}
inline void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                 const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
                 int64_t ldc) {
  cblas_dgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
              transpose_b ? CblasTrans : CblasNoTrans, m, n, k, alpha, a, lda, b, ldb, beta, c,
              ldc);
}

}  // namespace filigree
