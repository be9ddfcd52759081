// Kinds of blocked layouts that tests of products go through.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/sparse/layout.h"

namespace filigree {

enum class Pattern { kRandom, kFull, kOneBlock, kEmptyLines, kUnbalanced, kEmpty };
inline constexpr Pattern kPatterns[] = {Pattern::kRandom,     Pattern::kFull,
                                        Pattern::kOneBlock,   Pattern::kEmptyLines,
                                        Pattern::kUnbalanced, Pattern::kEmpty};
inline constexpr const char* kPatternNames[] = {"random",      "full",       "one block",
                                                "empty lines", "unbalanced", "empty"};

inline bool IsStored(Pattern pattern, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  const auto cell = static_cast<uint64_t>(row * cols + col);
  const uint64_t stream = RngStream("bsr mma test");
  switch (pattern) {
    case Pattern::kRandom:
      return RandomBelow(1, stream, cell, 3) == 0;
    case Pattern::kFull:
      return true;
    case Pattern::kOneBlock:
      return row == rows - 1 && col == cols - 1;
    case Pattern::kEmptyLines:
      return row % 3 != 1 && col % 3 != 0;
    case Pattern::kUnbalanced:
      return RandomBelow(2, stream, cell, row + 1) == 0;
    case Pattern::kEmpty:
      return false;
  }
  return false;
}

inline SparseLayout MakeLayout(Pattern pattern, int64_t out, int64_t in, int block_out,
                               int block_in) {
  const int64_t rows = (out + block_out - 1) / block_out;
  const int64_t cols = (in + block_in - 1) / block_in;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      if (IsStored(pattern, i, j, rows, cols)) columns.push_back(static_cast<int32_t>(j));
    }
    offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  return SparseLayout::Blocked(out, in, block_out, block_in, offsets, columns).value();
}

}  // namespace filigree
