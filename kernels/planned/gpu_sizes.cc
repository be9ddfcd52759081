#include "kernels/planned/gpu_sizes.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/mma_indices.h"

namespace filigree {
namespace {

// Of both sides of a matrix that cuSPARSELt compresses.
constexpr int64_t kTwoFourMultiple = 16;
// Forms are as large as for a multiple of this, at most.
constexpr int64_t kTwoFourTile = 64;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr int64_t GiB(double count) { return static_cast<int64_t>(count * kGiB); }

int64_t InBuffer(int64_t count, int64_t element_bytes) {
  return AlignUp(count * element_bytes, kIndexAlignment);
}

bool IsMultiple(const SparseLayout& layout) {
  return layout.out() % layout.block_out() == 0 && layout.in() % layout.block_in() == 0;
}

// SpmmSchedule's lists: a step for each 64 of a block's depth, a tile for each panel of outputs and
// tile of tokens.
int64_t SpmmListBytes(const SparseLayout& layout, bool transposed, int64_t tokens,
                      const GpuCard& card) {
  const int features = transposed ? layout.block_in() : layout.block_out();
  const int depth = transposed ? layout.block_out() : layout.block_in();
  const int64_t panels = transposed ? layout.grid_cols() : layout.grid_rows();
  const int64_t tile_tokens = features == 128 ? 256 : 512;
  return InBuffer(layout.block_count() * (depth / kChunk), sizeof(SpmmStep)) +
         InBuffer(panels * CeilDiv(tokens, tile_tokens), sizeof(SpmmTile)) +
         InBuffer(card.multiprocessors + 1, sizeof(int32_t));
}

PreparedLayout::StepUse SddmmUse(const SparseLayout& layout, int64_t tokens, bool bias_sums,
                                 const GpuCard& card) {
  const std::vector<int> row_begin(layout.row_offsets().begin(), layout.row_offsets().end());
  const std::vector<int> columns(layout.columns().begin(), layout.columns().end());
  const BsrPattern pattern = {.block = {.rows = layout.block_out(), .cols = layout.block_in()},
                              .block_row_count = static_cast<int>(layout.grid_rows()),
                              .block_col_count = static_cast<int>(layout.grid_cols()),
                              .row_begin = row_begin,
                              .col = columns};
  const SddmmSchedule schedule =
      BuildSddmmSchedule(pattern, tokens, card.multiprocessors, {.column_sums = bias_sums});
  const auto bytes = [](const auto& list) {
    return InBuffer(static_cast<int64_t>(list.size()), sizeof(list[0]));
  };
  const auto summed = schedule.sum_begin.empty() ? 0 : std::ssize(schedule.segments);
  return {.held_bytes = bytes(schedule.units) + bytes(schedule.segments) +
                        bytes(schedule.worker_begin) + bytes(schedule.reductions) +
                        bytes(schedule.sum_begin) + bytes(schedule.sum_segments),
          .scratch_bytes = SddmmPartialBytes(schedule.slot_count) + SddmmSumBytes(summed)};
}

// BlockIndex: both directions, of 32 bits.
int64_t BothDirectionsBytes(const SparseLayout& layout) {
  constexpr int64_t kIndex = sizeof(int32_t);
  return InBuffer(layout.grid_rows() + 1, kIndex) + InBuffer(layout.grid_cols() + 1, kIndex) +
         3 * InBuffer(layout.block_count(), kIndex);
}

}  // namespace

std::span<const NamedGpuCard> GpuCards() {
  static const std::array kCards = {
      NamedGpuCard{"h100", {"NVIDIA H100 80GB HBM3", 90, 132, GiB(79.1)}},
      NamedGpuCard{"h200", {"NVIDIA H200", 90, 132, GiB(139.7)}},
      NamedGpuCard{"a100", {"NVIDIA A100-SXM4-80GB", 80, 108, GiB(79.1)}},
  };
  return kCards;
}

const GpuCard* FindGpuCard(std::string_view key) {
  const auto found = std::ranges::find(GpuCards(), key, &NamedGpuCard::key);
  return found == GpuCards().end() ? nullptr : &found->card;
}

int64_t GpuIndexBytes(const SparseLayout& layout) {
  if (layout.kind() == LayoutKind::kDense) return 0;
  const bool short_columns = layout.grid_cols() <= int64_t{1} << 16;
  return InBuffer(static_cast<int64_t>(layout.row_offsets().size()), sizeof(uint32_t)) +
         InBuffer(layout.block_count(), short_columns ? sizeof(uint16_t) : sizeof(uint32_t));
}

bool HopperServes(const SparseLayout& layout, const GpuCard& card) {
  const auto served = [](int side) { return side == 64 || side == 128; };
  return card.compute_capability == 90 && layout.kind() == LayoutKind::kBlocked &&
         layout.block_count() > 0 && served(layout.block_out()) && served(layout.block_in()) &&
         IsMultiple(layout);
}

PreparedLayout::StepUse BlockedStepUse(const SparseLayout& layout, int64_t tokens, bool bias_sums,
                                       const GpuCard& card) {
  if (layout.kind() != LayoutKind::kBlocked || tokens == 0) return {};
  if (HopperServes(layout, card) && tokens >= kHopperMinTokens) {
    PreparedLayout::StepUse use = SddmmUse(layout, tokens, bias_sums, card);
    use.held_bytes += SpmmListBytes(layout, /*transposed=*/false, tokens, card) +
                      SpmmListBytes(layout, /*transposed=*/true, tokens, card);
    return use;
  }
  const bool served = card.compute_capability >= 80 && mma::IsBlockSide(layout.block_out()) &&
                      mma::IsBlockSide(layout.block_in()) && IsMultiple(layout);
  if (served) return {.held_bytes = BothDirectionsBytes(layout)};
  // Through the dense weight, of which the gradient is the larger.
  return {.scratch_bytes = layout.logical_count() * static_cast<int64_t>(sizeof(float))};
}

int64_t CompressedBytes(int64_t out, int64_t in, TwoFourKind kind, const GpuCard& card) {
  if (kind == TwoFourKind::kNone || card.compute_capability < 80) return 0;
  if (out % kTwoFourMultiple != 0 || in % kTwoFourMultiple != 0) return 0;
  // Two of four values, two bits for the place of each; and a mask, a bit a cell.
  const int64_t cells = AlignUp(out, kTwoFourTile) * AlignUp(in, kTwoFourTile);
  const int64_t one = cells + cells / 8 + cells / 8;
  return kind == TwoFourKind::kRowsAndColumns ? 2 * one : one;
}

// Measured on an H100, llama 1B at 16,384 tokens a step, 12.5 % of the blocks beside rank d / 8:
// the time of all linears over their operations, against the dense step's. Blocks that the Hopper
// kernels do not take were not measured; they are counted as the slowest of those.
double GpuBlockedFlopCost(const SparseLayout& layout) {
  const int widest = std::max(layout.block_out(), layout.block_in());
  const int narrowest = std::min(layout.block_out(), layout.block_in());
  if (narrowest >= 128) return 1.6;
  return widest >= 128 && narrowest >= 64 ? 1.75 : 1.9;
}

// As seen with cuDNN 9 on an H100: the query's gradient summed in fp32, once for sequences of 256
// and twice for those of 1024 and more, and a number a row and head. Asked for the same bits it
// keeps a gradient for every tile of keys; heads that share keys have theirs in bf16 until they are
// summed.
int64_t EstimateAttentionScratch(const AttentionSize& size, bool deterministic) {
  const int64_t tokens = size.sequences * size.seq_len;
  const int64_t query_grad =
      tokens * size.heads * size.head_size * static_cast<int64_t>(sizeof(float));
  const int64_t rows = tokens * size.heads * static_cast<int64_t>(sizeof(float));
  const int64_t key_tile = size.head_size > 64 ? 256 : 128;
  const int64_t sums = deterministic ? std::max<int64_t>(CeilDiv(size.seq_len, key_tile), 2)
                                     : (size.seq_len > 256 ? 2 : 1);
  // Keys and values, each as large as half the query's gradient.
  const int64_t shared = size.kv_heads < size.heads ? query_grad : 0;
  return sums * query_grad + shared + rows + kIndexAlignment;
}

// One rank: 0.57 to 0.80 GB in use beyond what the device accounts for, most runs at 0.58. Two
// ranks: 1.17.
int64_t EstimateContext(int ranks) { return ranks == 1 ? 600'000'000 : 1'200'000'000; }

}  // namespace filigree
