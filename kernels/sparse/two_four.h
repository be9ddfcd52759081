// Which layouts are 2:4: at most two stored cells among any four that begin at a multiple of four.
#pragma once

#include <cstdint>

#include "kernels/sparse/layout.h"

namespace filigree {

// In order: what has more is what has less, too.
enum class TwoFourKind : uint8_t {
  kNone,
  kRows,            // along each row: W, whose products with inputs sum over the inputs
  kRowsAndColumns,  // along each column as well: W^T, too
};

// Of an n_m layout. Rows by its n and m, for all draws alike: 2:4, 2:8 and so on, and 1 of any m.
// Columns are looked at one by one. Layouts of other kinds are kNone.
TwoFourKind TwoFourOf(const SparseLayout& layout);

}  // namespace filigree
