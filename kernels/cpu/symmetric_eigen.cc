#include "kernels/cpu/symmetric_eigen.h"

#include <cblas.h>

#include "kernels/base/check.h"

// OpenBLAS brings LAPACK along.
extern "C" void dsyevd_(const char* job, const char* uplo, const int* n, double* a, const int* lda,
                        double* w, double* work, const int* lwork, int* iwork, const int* liwork,
                        int* info);

namespace filigree {

void MultiplyByTranspose(const double* w, int64_t rows, int64_t cols, double* gram) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, rows, cols, 1.0, w, cols, w, cols, 0.0,
              gram, rows);
}

void Multiply(const double* a, const double* b, int64_t rows, int64_t cols, int64_t depth,
              double* out) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, cols, depth, 1.0, a, depth, b, cols,
              0.0, out, cols);
}

void SubtractProduct(const double* a, const double* b, int64_t rows, int64_t cols, int64_t depth,
                     double* out) {
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rows, cols, depth, -1.0, a, rows, b, cols,
              1.0, out, cols);
}

std::vector<double> SymmetricEigenvectors(int64_t n, double* matrix) {
  const int size = static_cast<int>(n), query = -1;
  std::vector<double> values(n);
  int info = 0, integers = 0;
  double doubles = 0;
  // Column-major eigenvectors in columns are row-major ones in rows.
  const auto call = [&](double* work, const int* work_size, int* iwork, const int* iwork_size) {
    dsyevd_("V", "U", &size, matrix, &size, values.data(), work, work_size, iwork, iwork_size,
            &info);
    CHECK_EQ(info, 0) << "dsyevd of " << n << " x " << n;
  };
  call(&doubles, &query, &integers, &query);
  std::vector<double> work(static_cast<size_t>(doubles));
  std::vector<int> iwork(integers);
  const int work_size = static_cast<int>(work.size()), iwork_size = integers;
  call(work.data(), &work_size, iwork.data(), &iwork_size);
  return values;
}

}  // namespace filigree
