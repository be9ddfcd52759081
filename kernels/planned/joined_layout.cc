#include "kernels/planned/joined_layout.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {
namespace {

bool AreJoinable(std::span<const PreparedLayout* const> parts,
                 std::span<const int64_t> value_begin) {
  const SparseLayout& first = parts.front()->layout();
  for (size_t i = 0; i < parts.size(); ++i) {
    const SparseLayout& layout = parts[i]->layout();
    const bool same = layout.kind() == LayoutKind::kBlocked && layout.in() == first.in() &&
                      layout.block_out() == first.block_out() &&
                      layout.block_in() == first.block_in();
    // As BsrPattern::value_begin asks.
    const int64_t multiple = std::max(kChunk, layout.block_in());
    if (!same || layout.out() % layout.block_out() != 0) return false;
    if (value_begin[i] % multiple != 0) return false;
  }
  return true;
}

}  // namespace

std::optional<SparseLayout> JoinLayouts(std::span<const PreparedLayout* const> parts,
                                        std::span<const int64_t> value_begin) {
  CHECK_EQ(parts.size(), value_begin.size());
  if (parts.empty() || !AreJoinable(parts, value_begin)) return std::nullopt;
  const SparseLayout& first = parts.front()->layout();
  std::vector<int64_t> row_offsets = {0};
  std::vector<int32_t> columns;
  int64_t out = 0;
  for (const PreparedLayout* part : parts) {
    const SparseLayout& layout = part->layout();
    const int64_t begin = row_offsets.back();
    for (size_t row = 1; row < layout.row_offsets().size(); ++row) {
      row_offsets.push_back(begin + layout.row_offsets()[row]);
    }
    columns.insert(columns.end(), layout.columns().begin(), layout.columns().end());
    out += layout.out();
  }
  auto joined = SparseLayout::Blocked(out, first.in(), first.block_out(), first.block_in(),
                                      std::move(row_offsets), std::move(columns));
  CHECK(joined.ok()) << joined.status().message();
  return std::move(joined).value();
}

}  // namespace filigree
