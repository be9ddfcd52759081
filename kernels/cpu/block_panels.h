// Panels and tiles of the blocked products: spmm_bsr.cc and sddmm_bsr.cc.
//
// All three products are sums of small dense products over stored blocks. Activations are first
// copied, a chunk of tokens at a time, into panels: one [tokens, block width] matrix for each block
// column, contiguous and padded to whole vectors. Without them the rows of a wide matrix, a power
// of two apart, would evict one another from the cache, and every edge would need its own loop.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/cpu/cpu_prepared_layout.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {

// Tokens of a chunk. Two panels of 32 columns fill 32 KiB (tuned on an AMD EPYC 9004).
inline constexpr int64_t kChunkTokens = 128;
// The largest tile: 8 rows of 2 vectors of 64 bytes.
inline constexpr int64_t kTileElements = 8 * 2 * 16;

// `weight` as the CPU backend prepared it; a CHECK if it did not, or if the layout is not blocked.
inline const CpuPreparedLayout& Prepared(const PreparedLayout* weight) {
  const auto* prepared = dynamic_cast<const CpuPreparedLayout*>(weight);
  CHECK(prepared != nullptr) << "the layout was not prepared by the CPU backend";
  CHECK(prepared->layout().kind() == LayoutKind::kBlocked)
      << "blocked products need a blocked layout, not " << NameOf(prepared->layout().kind());
  return *prepared;
}

// The width of a panel or a rearranged block: whole vectors, and whole tiles where its columns
// become rows of a tile.
template <typename T>
int64_t PaddedWidth(int64_t block) {
  return AlignUp(block, std::max(Simd<T>().lanes, Simd<T>().tile_rows));
}

template <typename T>
int64_t PaddedTokens(int64_t tokens) {
  return AlignUp(tokens, Simd<T>().tile_rows);
}

// panel[PaddedTokens(tokens), width] = x[first .. first + tokens, column .. column + block). The
// padding reaches no result; it is zero so that nothing computes with what the scratch held before.
template <typename T>
void PackPanel(const Matrix<const T>& x, int64_t first, int64_t tokens, int64_t column,
               int64_t block, int64_t width, T* panel) {
  const int64_t inside = std::min(block, x.cols - column);
  for (int64_t t = 0; t < tokens; ++t, panel += width) {
    const T* row = x.row(first + t) + column;
    std::copy(row, row + inside, panel);
    std::fill(panel + inside, panel + width, T(0));
  }
  std::fill(panel, panel + (PaddedTokens<T>(tokens) - tokens) * width, T(0));
}

// Calls fn(row, column, vectors) for the tiles that cover [rows, columns).
template <typename T, typename Fn>
void ForEachTile(int64_t rows, int64_t columns, const Fn& fn) {
  const int64_t lanes = Simd<T>().lanes;
  for (int64_t j = 0; j < columns; j += 2 * lanes) {
    const int vectors = columns - j > lanes ? 2 : 1;
    for (int64_t i = 0; i < rows; i += Simd<T>().tile_rows) fn(i, j, vectors);
  }
}

}  // namespace filigree
