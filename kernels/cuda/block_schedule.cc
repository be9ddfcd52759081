#include "kernels/cuda/block_schedule.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/schedule_dealing.h"

namespace filigree {
namespace {

// A tile's fixed cost (epilogue, start) in reduction steps; tuned on an H100.
constexpr double kTileOverheadSteps = 1.5;

// A row of output blocks at some tokens.
struct RowTile {
  int row;
  int32_t token_begin;
};

using StepLists = std::vector<std::vector<SpmmStep>>;

// The steps with factors of every output block row (or, transposed, block column).
void ListFactorSteps(const BsrPattern& pattern, bool transposed,
                     std::span<const FactorPart> factors, StepLists* lists) {
  const auto [rows, cols] = pattern.block;
  for (const FactorPart& part : factors) {
    CHECK(part.rank % kChunk == 0 && part.inner_begin % kChunk == 0) << "rank " << part.rank;
    CHECK(part.out_begin % rows == 0 && part.out_count % rows == 0);
    CHECK_LE((part.inner_begin + part.rank) / kChunk, 32768);
    const int first = transposed ? 0 : part.out_begin / rows;
    const int count = transposed ? pattern.block_col_count : part.out_count / rows;
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < part.rank / kChunk; ++c) {
        (*lists)[first + i].push_back(
            {.weight_row = part.row_begin + (transposed ? c * kChunk : i * rows),
             .weight_chunk = static_cast<int16_t>(transposed ? i * (cols / kChunk) : c),
             .input_chunk = SpmmStep::InnerChunk(part.inner_begin / kChunk + c)});
      }
    }
  }
}

// The steps of every output block row (or, transposed, block column); ranges[i] .. ranges[i + 1].
std::vector<int> AppendSteps(const BsrPattern& pattern, bool transposed,
                             std::span<const FactorPart> factors, std::vector<SpmmStep>* steps) {
  const auto [rows, cols] = pattern.block;
  StepLists lists(transposed ? pattern.block_col_count : pattern.block_row_count);
  ListFactorSteps(pattern, transposed, factors, &lists);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      const int j = pattern.col[p];
      const auto first_row = static_cast<int32_t>(pattern.ValueBegin(p) / cols);
      const int reduction = transposed ? rows : cols;
      for (int c = 0; c < reduction / kChunk; ++c) {
        const int outer = (transposed ? i : j) * (reduction / kChunk) + c;
        lists[transposed ? j : i].push_back(
            {.weight_row = first_row + (transposed ? c * kChunk : 0),
             .weight_chunk = static_cast<int16_t>(transposed ? 0 : c),
             .input_chunk = static_cast<int16_t>(outer)});
      }
    }
  }
  std::vector<int> ranges = {0};
  for (const auto& list : lists) {
    steps->insert(steps->end(), list.begin(), list.end());
    ranges.push_back(static_cast<int>(steps->size()));
  }
  return ranges;
}

// Rows at all tokens, dealt in order of (token group, most costly row first, token).
std::pair<std::vector<RowTile>, std::vector<int32_t>> DealRows(const std::vector<double>& cost,
                                                               int64_t tokens,
                                                               const SpmmTiling& tiling) {
  std::vector<int> order(cost.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] > cost[b]; });
  const int token_tiles = static_cast<int>((tokens + tiling.tile_tokens - 1) / tiling.tile_tokens);
  std::vector<RowTile> tiles;
  tiles.reserve(token_tiles * cost.size());
  for (int group = 0; group < token_tiles; group += tiling.token_group) {
    const int group_end = std::min(group + tiling.token_group, token_tiles);
    for (int row : order) {
      for (int t = group; t < group_end; ++t) tiles.push_back({row, t * tiling.tile_tokens});
    }
  }
  return Deal<RowTile>(tiles, tiling.workers, [&](const RowTile& tile) { return cost[tile.row]; });
}

}  // namespace

SpmmSchedule BuildSpmmSchedule(const BsrPattern& pattern, bool transposed, int64_t tokens,
                               const SpmmTiling& tiling, std::span<const FactorPart> factors) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - tiling.tile_tokens);
  SpmmSchedule schedule;
  const std::vector<int> ranges = AppendSteps(pattern, transposed, factors, &schedule.steps);
  const int rows = static_cast<int>(ranges.size()) - 1;
  const int tile_features = transposed ? pattern.block.cols : pattern.block.rows;
  const auto length = [&](int row) { return ranges[row + 1] - ranges[row]; };
  // What a worker makes in turn begins in one of these rows; its other is so many further on.
  CHECK(!tiling.pairs || rows % 2 == 0) << rows << " rows in pairs";
  const int first_rows = tiling.pairs ? rows / 2 : rows;
  std::vector<double> cost(first_rows);
  for (int row = 0; row < rows; ++row) cost[row % first_rows] += length(row) + kTileOverheadSteps;

  const auto [dealt, begins] = DealRows(cost, tokens, tiling);
  schedule.tiles.reserve(dealt.size() * (tiling.pairs ? 2 : 1));
  for (const RowTile& tile : dealt) {
    for (int row = tile.row; row < rows; row += first_rows) {
      schedule.tiles.push_back({.token_begin = tile.token_begin,
                                .feature_begin = row * tile_features,
                                .step_begin = ranges[row],
                                .step_count = length(row)});
    }
  }
  for (const int32_t begin : begins) {
    schedule.worker_begin.push_back(tiling.pairs ? 2 * begin : begin);
  }
  return schedule;
}

}  // namespace filigree
