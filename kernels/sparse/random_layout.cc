#include "kernels/sparse/random_layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <iterator>
#include <numeric>
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

// Calls fn(cell, key) with the 32 random bits of the cells [begin, end), four to a Philox block.
template <typename Fn>
void ForEachKey(uint64_t seed, uint64_t stream, int64_t begin, int64_t end, const Fn& fn) {
  for (int64_t block = begin / 4; 4 * block < end; ++block) {
    const auto words = Philox4x32(seed, stream, static_cast<uint64_t>(block));
    const int64_t first = 4 * block, last = std::min(first + 4, end);
    for (int64_t cell = std::max(first, begin); cell < last; ++cell) fn(cell, words[cell - first]);
  }
}

// What a thread takes at once of the keys' passes: whole rows, about a million cells.
class RowChunks {
 public:
  RowChunks(int64_t rows, int64_t cols)
      : rows_(rows), size_(std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(cols, 1))) {}
  int64_t count() const { return CeilDiv(rows_, size_); }
  int64_t begin(int64_t chunk) const { return std::min(rows_, chunk * size_); }

 private:
  int64_t rows_, size_;
};

using DrawnCell = std::pair<uint32_t, int64_t>;  // its key, which orders, then itself

// How many keys share each value of their upper 16 bits.
std::vector<int64_t> KeyHistogram(const RowChunks& chunks, int64_t cols, uint64_t seed,
                                  uint64_t stream) {
  std::vector<int64_t> histogram(1 << 16, 0);
#pragma omp parallel
  {
    std::vector<int64_t> mine(1 << 16, 0);
#pragma omp for
    for (int64_t c = 0; c < chunks.count(); ++c) {
      ForEachKey(seed, stream, chunks.begin(c) * cols, chunks.begin(c + 1) * cols,
                 [&](int64_t, uint32_t key) { ++mine[key >> 16]; });
    }
#pragma omp critical
    for (size_t bin = 0; bin < mine.size(); ++bin) histogram[bin] += mine[bin];
  }
  return histogram;
}

// The cells of the `count` smallest keys: uniform without replacement, in O(cells) time and memory
// for the result only. A first pass finds the 2^16-wide range of keys in which the limit lies, a
// second orders the few cells in it (equal keys by cell: a bias of about 2^-32), a third collects.
Csr DrawCells(int64_t rows, int64_t cols, int64_t count, uint64_t seed, uint64_t stream) {
  const RowChunks chunks(rows, cols);
  const std::vector<int64_t> histogram = KeyHistogram(chunks, cols, seed, stream);
  uint32_t bin = 0;
  int64_t below = 0;
  while (bin + 1 < histogram.size() && below + histogram[bin] <= count) below += histogram[bin++];

  std::vector<DrawnCell> candidates;
#pragma omp parallel for
  for (int64_t c = 0; c < chunks.count(); ++c) {
    ForEachKey(seed, stream, chunks.begin(c) * cols, chunks.begin(c + 1) * cols,
               [&](int64_t cell, uint32_t key) {
                 if (key >> 16 != bin) return;
#pragma omp critical
                 candidates.emplace_back(key, cell);
               });
  }
  std::sort(candidates.begin(), candidates.end());
  candidates.resize(count - below);  // they are drawn, and every cell of a lower bin
  const DrawnCell end = candidates.empty()
                            ? DrawnCell{bin << 16, 0}
                            : DrawnCell{candidates.back().first, candidates.back().second + 1};

  std::vector<std::vector<int32_t>> columns(chunks.count());
  Csr csr;
  csr.offsets.assign(rows + 1, 0);
#pragma omp parallel for
  for (int64_t c = 0; c < chunks.count(); ++c) {
    ForEachKey(seed, stream, chunks.begin(c) * cols, chunks.begin(c + 1) * cols,
               [&](int64_t cell, uint32_t key) {
                 if (DrawnCell(key, cell) >= end) return;
                 const int64_t row = cell / cols;
                 ++csr.offsets[row + 1];
                 columns[c].push_back(static_cast<int32_t>(cell - row * cols));
               });
  }
  std::partial_sum(csr.offsets.begin(), csr.offsets.end(), csr.offsets.begin());
  csr.columns.reserve(count);
  for (const auto& part : columns) {
    csr.columns.insert(csr.columns.end(), part.begin(), part.end());
  }
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

// Random words in a row, four to a Philox block.
class WordSequence {
 public:
  WordSequence(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  uint32_t Next() {
    if (next_ % 4 == 0) words_ = Philox4x32(seed_, stream_, next_ / 4);
    return words_[next_++ % 4];
  }
  // Uniform in [0, bound), to within 2^-32 * bound.
  int Below(int bound) {
    return static_cast<int>(uint64_t{Next()} * static_cast<uint64_t>(bound) >> 32);
  }

 private:
  const uint64_t seed_, stream_;
  uint64_t next_ = 0;
  decltype(Philox4x32(0, 0, 0)) words_ = {};
};

using RowBits = std::vector<uint64_t>;  // m rows of m bits

// Each row by itself: bit j is taken with the odds that are left (Knuth's algorithm S).
void DrawRows(int n, int m, WordSequence& words, RowBits& rows) {
  for (uint64_t& row : rows) {
    row = 0;
    for (int j = 0, left = n; left > 0; ++j) {
      if (words.Below(m - j) >= left) continue;
      row |= uint64_t{1} << j;
      --left;
    }
  }
}

// n in every row and column: a circulant whose rows and columns are shuffled, mixed by switches of
// 2 x 2 minors, which reach every such block from any other. Blocks that differ by shuffles are
// equally likely at every point of the chain, the rest follows within a few switches.
void DrawTransposable(int n, int m, WordSequence& words, RowBits& rows) {
  std::array<int, 64> column;
  std::iota(column.begin(), column.begin() + m, 0);
  for (int i = m - 1; i > 0; --i) std::swap(column[i], column[words.Below(i + 1)]);
  for (int i = 0; i < m; ++i) {
    rows[i] = 0;
    for (int j = 0; j < n; ++j) rows[i] |= uint64_t{1} << column[(i + j) % m];
  }
  for (int i = m - 1; i > 0; --i) std::swap(rows[i], rows[words.Below(i + 1)]);
  const int switches = 8 * m;
  for (int i = 0; i < switches; ++i) {
    const uint32_t word = words.Next();  // a byte for each of the four
    const auto pick = [&](int byte) { return static_cast<int>((word >> 8 * byte & 255) * m >> 8); };
    uint64_t& a = rows[pick(0)];
    uint64_t& b = rows[pick(1)];
    const int p = pick(2), q = pick(3);
    if ((a >> p & 1) && (b >> q & 1) && !(a >> q & 1) && !(b >> p & 1)) {
      const uint64_t both = uint64_t{1} << p | uint64_t{1} << q;
      a ^= both;
      b ^= both;
    }
  }
}

}  // namespace

SparseLayout RandomNM(int64_t out, int64_t in, int n, int m, bool transposable, uint64_t seed,
                      std::string_view name) {
  CHECK(n >= 1 && n < m && m <= 64 && in % m == 0 && (!transposable || out % m == 0))
      << n << ":" << m << " of " << out << " x " << in;
  WordSequence words(seed, RngStream(transposable ? "n_m.transposable" : "n_m", name));
  RowBits block(transposable ? m : 1);
  const auto height = static_cast<int64_t>(block.size());
  std::vector<int32_t> columns(out * (in / m * n));
  for (int64_t top = 0; top < out; top += height) {
    for (int64_t left = 0; left < in; left += m) {
      transposable ? DrawTransposable(n, m, words, block) : DrawRows(n, m, words, block);
      for (int64_t i = 0; i < height; ++i) {
        int32_t* to = columns.data() + (top + i) * (in / m * n) + left / m * n;
        for (uint64_t bits = block[i]; bits != 0; bits &= bits - 1) {
          *to++ = static_cast<int32_t>(left + std::countr_zero(bits));
        }
      }
    }
  }
  return SparseLayout::NM(out, in, n, m, std::move(columns)).value();
}

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
