#include "kernels/sparse/two_four.h"

#include <algorithm>
#include <vector>

namespace filigree {
namespace {

// One of every m: four cells meet two groups of those at most, or, for m = 2, two.
bool RowsAre(int n, int m) { return n == 1 || (n == 2 && m % 4 == 0); }

// The first draw of four rows at random shows already that they are not.
bool ColumnsAre(const SparseLayout& layout) {
  std::vector<uint8_t> counts(layout.in());
  for (int64_t row = 0; row < layout.out(); ++row) {
    if (row % 4 == 0) std::ranges::fill(counts, uint8_t{0});
    const int64_t begin = layout.row_offsets()[row], end = layout.row_offsets()[row + 1];
    for (const int32_t column : layout.columns().subspan(begin, end - begin)) {
      if (++counts[column] > 2) return false;
    }
  }
  return true;
}

}  // namespace

TwoFourKind TwoFourOf(const SparseLayout& layout) {
  if (layout.kind() != LayoutKind::kNM || !RowsAre(layout.n(), layout.m())) {
    return TwoFourKind::kNone;
  }
  return ColumnsAre(layout) ? TwoFourKind::kRowsAndColumns : TwoFourKind::kRows;
}

}  // namespace filigree
