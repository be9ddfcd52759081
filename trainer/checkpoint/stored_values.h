// The three forms of a parameter's values: a segment in slot order (with padding), the nonzeros in
// stored order (what files hold), and the dense logical array (what export writes).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sparse/layout.h"
#include "trainer/parameter.h"

namespace filigree {

// Drops padding: `layout.nonzero_count()` values of a segment that begins with the stored cells.
std::vector<float> NonzerosOfSegment(const SparseLayout& layout, std::span<const float> segment);
// The inverse: `parameter.segment_count()` values, padding zero.
std::vector<float> SegmentOfNonzeros(const Parameter& parameter, std::span<const float> nonzeros);
// `layout.logical_count()` values, row-major; zero where nothing is stored.
std::vector<float> DenseOfNonzeros(const SparseLayout& layout, std::span<const float> nonzeros);
// 1 for each logical cell that is stored, row-major.
std::vector<uint8_t> MaskOf(const SparseLayout& layout);

}  // namespace filigree
