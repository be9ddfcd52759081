#include "kernels/sparse/random_layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/base/rng.h"

namespace filigree {
namespace {

struct Csr {
  std::vector<int64_t> offsets;
  std::vector<int32_t> columns;
};

int64_t RoundedCount(double density, int64_t cells) {
  CHECK(density >= 0.0 && density <= 1.0) << "density " << density;
  return std::llround(density * static_cast<double>(cells));
}

// Calls fn(cell, key) with the 32 random bits of each cell, four to a Philox block.
template <typename Fn>
void ForEachKey(uint64_t seed, uint64_t stream, int64_t cells, const Fn& fn) {
  for (int64_t first = 0; first < cells; first += 4) {
    const auto words = Philox4x32(seed, stream, static_cast<uint64_t>(first / 4));
    const int64_t count = std::min<int64_t>(4, cells - first);
    for (int64_t i = 0; i < count; ++i) fn(first + i, words[i]);
  }
}

// The cells of the `count` smallest keys: uniform without replacement, in O(cells) time and memory
// for the result only. A first pass finds the 2^16-wide range of keys in which the limit lies, a
// second orders the few cells in it (equal keys by cell: a bias of about 2^-32), a third collects.
Csr DrawCells(int64_t rows, int64_t cols, int64_t count, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> histogram(1 << 16, 0);
  ForEachKey(seed, stream, rows * cols, [&](int64_t, uint32_t key) { ++histogram[key >> 16]; });
  uint32_t bin = 0;
  int64_t below = 0;
  while (bin + 1 < histogram.size() && below + histogram[bin] <= count) below += histogram[bin++];

  std::vector<std::pair<uint32_t, int64_t>> candidates;
  ForEachKey(seed, stream, rows * cols, [&](int64_t cell, uint32_t key) {
    if (key >> 16 == bin) candidates.emplace_back(key, cell);
  });
  std::sort(candidates.begin(), candidates.end());
  candidates.resize(count - below);  // they are drawn, and every cell of a lower bin

  Csr csr;
  csr.offsets.assign(rows + 1, 0);
  csr.columns.reserve(count);
  int64_t row = 0, row_end = cols;
  ForEachKey(seed, stream, rows * cols, [&](int64_t cell, uint32_t key) {
    for (; cell >= row_end; row_end += cols) csr.offsets[++row] = csr.columns.size();
    if (key >> 16 > bin) return;
    if (key >> 16 == bin && (candidates.empty() || std::pair(key, cell) > candidates.back())) {
      return;
    }
    csr.columns.push_back(static_cast<int32_t>(cell - row * cols));
  });
  while (row < rows) csr.offsets[++row] = csr.columns.size();
  CHECK_EQ(static_cast<int64_t>(csr.columns.size()), count);
  return csr;
}

// One trade of the curveball algorithm (Strona et al. 2014): the columns that only one of two rows
// holds are dealt out anew. Row and column sums stay as they are.
void Trade(std::vector<int32_t>& a, std::vector<int32_t>& b, uint64_t seed, uint64_t stream) {
  std::vector<int32_t> shared, pool;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(shared));
  std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(pool));
  const size_t a_only = a.size() - shared.size();
  for (size_t i = 0; i < a_only; ++i) {
    std::swap(pool[i], pool[i + RandomBelow(seed, stream, i, pool.size() - i)]);
  }
  b.assign(pool.begin() + a_only, pool.end());
  pool.resize(a_only);
  a = std::move(pool);
  for (auto* row : {&a, &b}) {
    row->insert(row->end(), shared.begin(), shared.end());
    std::sort(row->begin(), row->end());
  }
}

// Row and column sums that differ by at most one, from dealing columns round robin, then shuffled
// by trades between random pairs of rows.
Csr DrawBalanced(int64_t rows, int64_t cols, int64_t count, uint64_t seed, std::string_view name) {
  std::vector<std::vector<int32_t>> columns_of(rows);
  if (count > 0) {
    const RandomPermutation row_name(seed, RngStream("balanced_blocks.rows", name), rows);
    const RandomPermutation column_name(seed, RngStream("balanced_blocks.columns", name), cols);
    int64_t dealt = 0;
    for (int64_t r = 0; r < rows; ++r) {
      auto& row = columns_of[row_name(r)];
      const int64_t share = count / rows + (r < count % rows ? 1 : 0);
      for (int64_t i = 0; i < share; ++i, ++dealt) row.push_back(column_name(dealt % cols));
      std::sort(row.begin(), row.end());
    }
    // log2(rows) rounds can carry a column from any row to any other; eight more mix them.
    const int rounds = std::bit_width(static_cast<uint64_t>(rows)) + 8;
    for (int round = 0; round < rounds; ++round) {
      const RandomPermutation pairing(seed, RngStream("balanced_blocks.pairs", name, round), rows);
      for (int64_t i = 0; i + 1 < rows; i += 2) {
        Trade(columns_of[pairing(i)], columns_of[pairing(i + 1)], seed,
              RngStream("balanced_blocks.trade", name, round * rows + i));
      }
    }
  }
  Csr csr;
  csr.offsets.push_back(0);
  for (const auto& row : columns_of) {
    csr.columns.insert(csr.columns.end(), row.begin(), row.end());
    csr.offsets.push_back(static_cast<int64_t>(csr.columns.size()));
  }
  return csr;
}

}  // namespace

SparseLayout RandomUnstructured(int64_t out, int64_t in, double density, uint64_t seed,
                                std::string_view name) {
  return RandomUnstructuredCells(out, in, RoundedCount(density, out * in), seed, name);
}

SparseLayout RandomUnstructuredCells(int64_t out, int64_t in, int64_t count, uint64_t seed,
                                     std::string_view name) {
  CHECK(count >= 0 && count <= out * in) << count << " cells of " << out << " x " << in;
  Csr csr = DrawCells(out, in, count, seed, RngStream("random_unstructured", name));
  return SparseLayout::Unstructured(out, in, std::move(csr.offsets), std::move(csr.columns))
      .value();
}

SparseLayout RandomBalancedBlocks(int64_t out, int64_t in, int block_out, int block_in,
                                  double density, uint64_t seed, std::string_view name) {
  CHECK(block_out >= 1 && block_in >= 1) << "block of " << block_out << " x " << block_in;
  const int64_t rows = CeilDiv(out, block_out), cols = CeilDiv(in, block_in);
  Csr csr = DrawBalanced(rows, cols, RoundedCount(density, rows * cols), seed, name);
  return SparseLayout::Blocked(out, in, block_out, block_in, std::move(csr.offsets),
                               std::move(csr.columns))
      .value();
}

SparseLayout RandomUniformBlocks(int64_t out, int64_t in, int block_out, int block_in,
                                 double density, uint64_t seed, std::string_view name) {
  CHECK(block_out >= 1 && block_in >= 1) << "block of " << block_out << " x " << block_in;
  const int64_t rows = CeilDiv(out, block_out), cols = CeilDiv(in, block_in);
  Csr csr = DrawCells(rows, cols, RoundedCount(density, rows * cols), seed,
                      RngStream("random_uniform_blocks", name));
  return SparseLayout::Blocked(out, in, block_out, block_in, std::move(csr.offsets),
                               std::move(csr.columns))
      .value();
}

}  // namespace filigree
