#include "trainer/pruning/second_order.h"

#include <cmath>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// Row-major.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), cells_(static_cast<size_t>(rows * columns)) {}
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  double* row(int64_t row) { return cells_.data() + row * columns_; }
  const double* row(int64_t row) const { return cells_.data() + row * columns_; }

 private:
  int64_t rows_, columns_;
  std::vector<double> cells_;
};

void SubtractMultiple(double* from, const double* row, double factor, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) from[i] -= factor * row[i];
}

// The upper factor R of a symmetric positive matrix R^T R, in place; only its upper triangle is
// read. By rows, so that the inner loops are over neighbours.
void Cholesky(Matrix* a) {
  const int64_t n = a->rows();
  for (int64_t k = 0; k < n; ++k) {
    double* pivot = a->row(k);
    CHECK(pivot[k] > 0) << "damping left H singular at column " << k;
    const double root = std::sqrt(pivot[k]);
    for (int64_t j = k; j < n; ++j) pivot[j] /= root;
    for (int64_t i = k + 1; i < n; ++i) {
      SubtractMultiple(a->row(i) + i, pivot + i, pivot[i], n - i);
    }
  }
}

// Solves R^T R Z = B in place, all columns at once.
void Solve(const Matrix& upper, Matrix* b) {
  const int64_t n = upper.rows(), columns = b->columns();
  for (int64_t k = 0; k < n; ++k) {
    double* row = b->row(k);
    for (int64_t c = 0; c < columns; ++c) row[c] /= upper.row(k)[k];
    for (int64_t i = k + 1; i < n; ++i) {
      SubtractMultiple(b->row(i), row, upper.row(k)[i], columns);
    }
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    double* row = b->row(i);
    for (int64_t k = i + 1; k < n; ++k) {
      SubtractMultiple(row, b->row(k), upper.row(i)[k], columns);
    }
    for (int64_t c = 0; c < columns; ++c) row[c] /= upper.row(i)[i];
  }
}

}  // namespace

ColumnUpdate SolveColumns(std::span<const float> gram, int64_t block, std::span<const int64_t> gone,
                          double damping) {
  CHECK_EQ(static_cast<int64_t>(gram.size()), block * block);
  std::vector<int64_t> rest;
  double trace = 0;
  int64_t read = 0;  // columns with inputs
  for (int64_t c = 0, next = 0; c < block; ++c) {
    trace += gram[c * block + c];
    read += gram[c * block + c] > 0;
    if (next < static_cast<int64_t>(gone.size()) && gone[next] == c) {
      ++next;
    } else {
      rest.push_back(c);
    }
  }
  if (rest.empty() || trace <= 0) return {};
  const auto size = static_cast<int64_t>(rest.size());
  Matrix h(size, size);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = i; j < size; ++j) h.row(i)[j] = gram[rest[i] * block + rest[j]];
    h.row(i)[i] += damping * trace / static_cast<double>(read);
  }
  Cholesky(&h);
  Matrix factors(size, std::ssize(gone));
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t k = 0; k < std::ssize(gone); ++k) {
      factors.row(i)[k] = gram[rest[i] * block + gone[k]];
    }
  }
  Solve(h, &factors);
  ColumnUpdate update = {.rest = rest, .factors = {}};
  for (int64_t k = 0; k < std::ssize(gone); ++k) {
    for (int64_t i = 0; i < size; ++i) update.factors.push_back(factors.row(i)[k]);
  }
  return update;
}

}  // namespace filigree
