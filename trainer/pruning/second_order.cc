#include "trainer/pruning/second_order.h"

#include <cmath>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// A square matrix, row-major.
class SquareMatrix {
 public:
  explicit SquareMatrix(int64_t size) : size_(size), cells_(static_cast<size_t>(size * size)) {}
  int64_t size() const { return size_; }
  double& at(int64_t row, int64_t column) { return cells_[row * size_ + column]; }
  double at(int64_t row, int64_t column) const { return cells_[row * size_ + column]; }

 private:
  int64_t size_;
  std::vector<double> cells_;
};

// The lower factor of a symmetric positive matrix, in place.
void Cholesky(SquareMatrix* a) {
  for (int64_t j = 0; j < a->size(); ++j) {
    for (int64_t i = j; i < a->size(); ++i) {
      double sum = a->at(i, j);
      for (int64_t k = 0; k < j; ++k) sum -= a->at(i, k) * a->at(j, k);
      if (i == j) {
        CHECK(sum > 0) << "damping left H singular at column " << j;
        a->at(j, j) = std::sqrt(sum);
      } else {
        a->at(i, j) = sum / a->at(j, j);
      }
    }
  }
}

// Solves L L^T z = b in place.
void Solve(const SquareMatrix& lower, std::vector<double>* b) {
  const int64_t n = lower.size();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < i; ++k) (*b)[i] -= lower.at(i, k) * (*b)[k];
    (*b)[i] /= lower.at(i, i);
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    for (int64_t k = i + 1; k < n; ++k) (*b)[i] -= lower.at(k, i) * (*b)[k];
    (*b)[i] /= lower.at(i, i);
  }
}

}  // namespace

ColumnUpdate SolveColumns(std::span<const float> gram, int64_t block,
                          std::span<const int64_t> gone, double damping) {
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
  SquareMatrix h(size);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) h.at(i, j) = gram[rest[i] * block + rest[j]];
    h.at(i, i) += damping * trace / static_cast<double>(read);
  }
  Cholesky(&h);
  ColumnUpdate update = {.rest = rest, .factors = {}};
  for (const int64_t column : gone) {
    std::vector<double> z(rest.size());
    for (int64_t i = 0; i < size; ++i) z[i] = gram[rest[i] * block + column];
    Solve(h, &z);
    update.factors.insert(update.factors.end(), z.begin(), z.end());
  }
  return update;
}

}  // namespace filigree
