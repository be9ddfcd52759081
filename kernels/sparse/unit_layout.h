// A layout as a set of units: single weights of an unstructured layout, blocks of a blocked one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sparse/layout.h"

namespace filigree {

// Units of the whole (padded) weight, in row-major order of cells or of blocks.
int64_t UnitCount(const SparseLayout& layout);
int64_t StoredUnitCount(const SparseLayout& layout);

// Layouts of the kind (unstructured or blocked), shape and blocks of `like`. That which stores the
// units marked 1:
SparseLayout WithUnits(const SparseLayout& like, std::span<const uint8_t> marks);
// That which stores in row r of its grid columns[row_offsets[r]] to columns[row_offsets[r + 1] - 1],
// which must be a layout's (SparseLayout::Unstructured).
SparseLayout WithRows(const SparseLayout& like, std::vector<int64_t> row_offsets,
                      std::vector<int32_t> columns);

// Units that both store, of two layouts of one kind, shape and block size; counted in cells inside
// the weight.
int64_t CommonCells(const SparseLayout& a, const SparseLayout& b);

}  // namespace filigree
