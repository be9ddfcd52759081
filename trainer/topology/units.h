// A layout as a set of units: single weights of an unstructured layout, blocks of a blocked one.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sparse/layout.h"

namespace filigree {

// Units of the whole (padded) weight, in row-major order of cells or of blocks.
int64_t UnitCount(const SparseLayout& layout);
int64_t StoredUnitCount(const SparseLayout& layout);
// A layout of the same kind and shape that stores the units marked 1.
SparseLayout WithUnits(const SparseLayout& like, const std::vector<uint8_t>& marks);

}  // namespace filigree
