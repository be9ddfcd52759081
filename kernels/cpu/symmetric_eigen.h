// Linear algebra in double for what happens once, at the start of a run. Matrices are row-major.
#pragma once

#include <cstdint>
#include <vector>

namespace filigree {

// gram [rows, rows] = w w^T of w [rows, cols].
void MultiplyByTranspose(const double* w, int64_t rows, int64_t cols, double* gram);
// out [rows, cols] = a b of a [rows, depth], b [depth, cols].
void Multiply(const double* a, const double* b, int64_t rows, int64_t cols, int64_t depth,
              double* out);
// out [rows, cols] -= a^T b of a [depth, rows], b [depth, cols].
void SubtractProduct(const double* a, const double* b, int64_t rows, int64_t cols, int64_t depth,
                     double* out);
// Replaces the symmetric `matrix` [n, n] by its eigenvectors, one a row, and returns their values,
// ascending (LAPACK's dsyevd).
std::vector<double> SymmetricEigenvectors(int64_t n, double* matrix);

}  // namespace filigree
