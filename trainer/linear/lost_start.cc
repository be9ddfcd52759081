#include "trainer/linear/lost_start.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/base/rng.h"
#include "kernels/cpu/symmetric_eigen.h"

namespace filigree {
namespace {

// A row-major matrix in double.
struct Wide {
  Wide(int64_t rows, int64_t cols) : rows(rows), cols(cols), data(rows * cols) {}
  double* row(int64_t i) { return data.data() + i * cols; }
  const double* row(int64_t i) const { return data.data() + i * cols; }
  int64_t rows, cols;
  std::vector<double> data;
};

Wide DenseStart(const LinearSpec& linear, uint64_t seed) {
  Parameter dense;
  dense.name = linear.name + ".weight";
  dense.init_std = linear.init_std;
  const InitialValues initial(dense, seed);
  Wide weight(linear.out, linear.in);
#pragma omp parallel for
  for (int64_t i = 0; i < linear.out * linear.in; ++i) weight.data[i] = initial[i];
  return weight;
}

Wide Transposed(const Wide& from) {
  Wide to(from.cols, from.rows);
#pragma omp parallel for
  for (int64_t i = 0; i < to.rows; ++i) {
    for (int64_t j = 0; j < to.cols; ++j) to.row(i)[j] = from.row(j)[i];
  }
  return to;
}

// With w [short side, long side] = P Sigma Q^T: P's first `rank` columns as rows, and their
// products with w, which are the rows of Sigma Q^T.
struct Leading {
  Wide vectors;   // [rank, short side]
  Wide products;  // [rank, long side]
};

Leading LeadingOf(const Wide& w, int64_t rank) {
  Wide gram(w.rows, w.rows);
  MultiplyByTranspose(w.data.data(), w.rows, w.cols, gram.data.data());
  const std::vector<double> values = SymmetricEigenvectors(gram.rows, gram.data.data());
  CHECK_EQ(values.size(), static_cast<size_t>(w.rows));
  Leading leading = {Wide(rank, w.rows), Wide(rank, w.cols)};
  for (int64_t k = 0; k < rank; ++k) {  // eigenvectors come in rows, values ascending
    const double* vector = gram.row(w.rows - 1 - k);
    // Either sign is one: the largest component is made positive.
    const double* largest = std::max_element(
        vector, vector + w.rows, [](double x, double y) { return std::fabs(x) < std::fabs(y); });
    const double sign = *largest < 0 ? -1 : 1;
    std::transform(vector, vector + w.rows, leading.vectors.row(k),
                   [&](double x) { return sign * x; });
  }
  Multiply(leading.vectors.data.data(), w.data.data(), rank, w.cols, w.rows,
           leading.products.data.data());
  return leading;
}

std::vector<int32_t> LargestColumns(const Wide& rest, int64_t count) {
  std::vector<double> squares(rest.cols, 0.0);
  for (int64_t i = 0; i < rest.rows; ++i) {
    for (int64_t j = 0; j < rest.cols; ++j) squares[j] += rest.row(i)[j] * rest.row(i)[j];
  }
  std::vector<int32_t> columns(rest.cols);
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(),
                   [&](int32_t x, int32_t y) { return squares[x] > squares[y]; });
  columns.resize(count);
  std::sort(columns.begin(), columns.end());
  return columns;
}

std::vector<float> Narrow(const Wide& from) { return {from.data.begin(), from.data.end()}; }

}  // namespace

int64_t LostChannels(const LinearSpec& linear, const SparsitySpec& sparsity) {
  return static_cast<int64_t>((1.0 - sparsity.sparsity) * static_cast<double>(linear.in) *
                              (1.0 + 1e-12));
}

LostStart ComputeLostStart(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  const Wide weight = DenseStart(linear, seed);
  const bool wide = linear.out <= linear.in;
  const int64_t rank = sparsity.rank;
  const Wide& w = wide ? weight : Transposed(weight);
  Leading leading = LeadingOf(w, rank);
  // w - P_r (P_r^T w), before the factors are scaled.
  Wide rest = w;
  SubtractProduct(leading.vectors.data.data(), leading.products.data.data(), w.rows, w.cols, rank,
                  rest.data.data());
  if (!wide) rest = Transposed(rest);
  for (int64_t k = 0; k < rank; ++k) {
    const double* product = leading.products.row(k);
    const double sigma = std::sqrt(std::inner_product(product, product + w.cols, product, 0.0));
    const double root = std::sqrt(sigma / sparsity.low_rank_scale());
    for (int64_t i = 0; i < w.rows; ++i) leading.vectors.row(k)[i] *= root;
    for (int64_t j = 0; j < w.cols; ++j) leading.products.row(k)[j] *= root / sigma;
  }
  LostStart start;
  start.a = Narrow(wide ? leading.products : leading.vectors);
  start.b = Narrow(Transposed(wide ? leading.vectors : leading.products));
  start.channels = LargestColumns(rest, LostChannels(linear, sparsity));
  start.rest = Narrow(rest);
  return start;
}

SparseLayout DrawLostLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  const LostStart start = ComputeLostStart(linear, sparsity, seed);
  std::vector<int64_t> row_offsets = {0};
  std::vector<int32_t> columns;
  for (int64_t row = 0; row < linear.out; ++row) {
    columns.insert(columns.end(), start.channels.begin(), start.channels.end());
    row_offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  return SparseLayout::Unstructured(linear.out, linear.in, std::move(row_offsets),
                                    std::move(columns))
      .value();
}

void StartAsLost(const LinearSpec& linear, const SparsitySpec& sparsity,
                 std::vector<Parameter>* parameters) {
  // Asked for in the parameters' order: computed for the first of the three, dropped by the last.
  auto held = std::make_shared<std::optional<LostStart>>();
  for (Parameter& parameter : *parameters) {
    const bool a = parameter.name == linear.name + ".low_rank_a";
    const bool b = parameter.name == linear.name + ".low_rank_b";
    if (!a && !b && parameter.name != linear.name + ".weight") continue;
    parameter.initial = [=](uint64_t seed) {
      if (!*held) *held = ComputeLostStart(linear, sparsity, seed);
      std::vector<float> values = std::move(a ? (*held)->a : b ? (*held)->b : (*held)->rest);
      if (b) held->reset();
      return values;
    };
  }
}

}  // namespace filigree
