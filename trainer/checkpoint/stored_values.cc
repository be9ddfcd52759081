#include "trainer/checkpoint/stored_values.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// Blocks at an edge and pitched rows have slots that are no cells.
bool HasPadding(const SparseLayout& layout) {
  return layout.stored_count() != layout.nonzero_count();
}

}  // namespace

std::vector<float> NonzerosOfSegment(const SparseLayout& layout, std::span<const float> segment) {
  CHECK_GE(static_cast<int64_t>(segment.size()), layout.stored_count());
  const std::span<const float> stored = segment.first(static_cast<size_t>(layout.stored_count()));
  if (!HasPadding(layout)) return std::vector<float>(stored.begin(), stored.end());
  std::vector<float> nonzeros;
  nonzeros.reserve(static_cast<size_t>(layout.nonzero_count()));
  const std::vector<int64_t> cells = layout.LogicalIndices();
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] >= 0) nonzeros.push_back(stored[slot]);
  }
  return nonzeros;
}

std::vector<float> SegmentOfNonzeros(const Parameter& parameter, std::span<const float> nonzeros) {
  const SparseLayout& layout = parameter.layout;
  CHECK_EQ(static_cast<int64_t>(nonzeros.size()), layout.nonzero_count());
  std::vector<float> segment(static_cast<size_t>(parameter.segment_count()), 0.0f);
  if (!HasPadding(layout)) {
    std::copy(nonzeros.begin(), nonzeros.end(), segment.begin());
    return segment;
  }
  const std::vector<int64_t> cells = layout.LogicalIndices();
  auto next = nonzeros.begin();
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] >= 0) segment[slot] = *next++;
  }
  return segment;
}

std::vector<float> DenseOfNonzeros(const SparseLayout& layout, std::span<const float> nonzeros) {
  CHECK_EQ(static_cast<int64_t>(nonzeros.size()), layout.nonzero_count());
  if (layout.kind() == LayoutKind::kDense) {
    return std::vector<float>(nonzeros.begin(), nonzeros.end());
  }
  std::vector<float> dense(static_cast<size_t>(layout.logical_count()), 0.0f);
  auto next = nonzeros.begin();
  for (int64_t cell : layout.LogicalIndices()) {
    if (cell >= 0) dense[static_cast<size_t>(cell)] = *next++;
  }
  return dense;
}

std::vector<uint8_t> MaskOf(const SparseLayout& layout) {
  const auto count = static_cast<size_t>(layout.logical_count());
  if (layout.kind() == LayoutKind::kDense) return std::vector<uint8_t>(count, 1);
  std::vector<uint8_t> mask(count, 0);
  for (int64_t cell : layout.LogicalIndices()) {
    if (cell >= 0) mask[static_cast<size_t>(cell)] = 1;
  }
  return mask;
}

}  // namespace filigree
