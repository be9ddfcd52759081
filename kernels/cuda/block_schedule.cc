#include "kernels/cuda/block_schedule.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// A tile's fixed cost (epilogue, start) in reduction steps; tuned on an H100.
constexpr double kTileOverheadSteps = 1.5;
// A token range shorter than this is not worth a partial sum of its own.
constexpr int kMinSliceSteps = 8;

void CheckPattern(const BsrPattern& pattern) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  CHECK(valid(pattern.block.rows) && valid(pattern.block.cols))
      << "blocks of " << pattern.block.rows << "x" << pattern.block.cols;
  CHECK_EQ(pattern.row_begin.size(), static_cast<size_t>(pattern.block_row_count) + 1);
  CHECK_EQ(pattern.row_begin.front(), 0);
  CHECK_EQ(pattern.row_begin.back(), pattern.block_count());
  CHECK_LE(pattern.block_count() * pattern.block.rows, int64_t{1} << 31);
  // SpmmStep::input_chunk has 16 bits.
  CHECK_LE(std::max(pattern.in_features(), pattern.out_features()) / kChunk, 32767);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      CHECK(pattern.col[p] >= 0 && pattern.col[p] < pattern.block_col_count);
      CHECK(p == pattern.row_begin[i] || pattern.col[p] > pattern.col[p - 1])
          << "columns of block row " << i << " do not ascend";
    }
  }
}

// The steps of every output block row (or, transposed, block column); ranges[i] .. ranges[i + 1].
std::vector<int> AppendSteps(const BsrPattern& pattern, bool transposed,
                             std::vector<SpmmStep>* steps) {
  const auto [rows, cols] = pattern.block;
  std::vector<std::vector<SpmmStep>> lists(transposed ? pattern.block_col_count
                                                      : pattern.block_row_count);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      const int j = pattern.col[p];
      const int reduction = transposed ? rows : cols;
      for (int c = 0; c < reduction / kChunk; ++c) {
        const int outer = (transposed ? i : j) * (reduction / kChunk) + c;
        lists[transposed ? j : i].push_back(
            {.weight_row = p * rows + (transposed ? c * kChunk : 0),
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

// Deals items in order, each to the worker that is free first (lowest index on a tie).
template <typename Item>
std::pair<std::vector<Item>, std::vector<int32_t>> Deal(const std::vector<Item>& items, int workers,
                                                        const std::function<double(const Item&)>& cost) {
  using Free = std::pair<double, int>;
  std::priority_queue<Free, std::vector<Free>, std::greater<>> queue;
  for (int w = 0; w < workers; ++w) queue.push({0.0, w});
  std::vector<std::vector<Item>> lists(workers);
  for (const Item& item : items) {
    auto [time, worker] = queue.top();
    queue.pop();
    lists[worker].push_back(item);
    queue.push({time + cost(item), worker});
  }
  std::pair<std::vector<Item>, std::vector<int32_t>> dealt;
  dealt.second.push_back(0);
  for (const auto& list : lists) {
    dealt.first.insert(dealt.first.end(), list.begin(), list.end());
    dealt.second.push_back(static_cast<int32_t>(dealt.first.size()));
  }
  return dealt;
}

}  // namespace

SpmmSchedule BuildSpmmSchedule(const BsrPattern& pattern, bool transposed, int64_t tokens,
                               const SpmmTiling& tiling) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - tiling.tile_tokens);
  SpmmSchedule schedule;
  const std::vector<int> ranges = AppendSteps(pattern, transposed, &schedule.steps);
  const int rows = static_cast<int>(ranges.size()) - 1;
  const int tile_features = transposed ? pattern.block.cols : pattern.block.rows;

  std::vector<int> order(rows);
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int row) { return ranges[row + 1] - ranges[row]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return length(a) > length(b); });

  const int token_tiles = static_cast<int>((tokens + tiling.tile_tokens - 1) / tiling.tile_tokens);
  std::vector<SpmmTile> tiles;
  tiles.reserve(static_cast<size_t>(token_tiles) * rows);
  for (int group = 0; group < token_tiles; group += tiling.token_group) {
    const int group_end = std::min(group + tiling.token_group, token_tiles);
    for (int row : order) {
      for (int t = group; t < group_end; ++t) {
        tiles.push_back({.token_begin = t * tiling.tile_tokens,
                         .feature_begin = row * tile_features,
                         .step_begin = ranges[row],
                         .step_count = length(row)});
      }
    }
  }
  std::tie(schedule.tiles, schedule.worker_begin) = Deal<SpmmTile>(
      tiles, tiling.workers,
      [](const SpmmTile& tile) { return tile.step_count + kTileOverheadSteps; });
  return schedule;
}

namespace {

// A unit's cost per token relative to a full one: the bytes that its operands take.
double UnitCost(const SddmmUnit& unit, int rows) {
  const double row_chunks = rows / kChunk;
  const double max_chunks = rows == 128 ? 4 : 8;
  return (row_chunks + unit.chunk_count[0] + unit.chunk_count[1]) / (row_chunks + max_chunks);
}

std::vector<SddmmUnit> MakeUnits(const BsrPattern& pattern) {
  const auto [rows, cols] = pattern.block;
  const int slots = rows == 128 ? 4 : 8;
  const int block_chunks = cols / kChunk;
  const int blocks_per_unit = slots / block_chunks;
  std::vector<SddmmUnit> units;
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; p += blocks_per_unit) {
      const int blocks = std::min(blocks_per_unit, pattern.row_begin[i + 1] - p);
      const int chunks = blocks * block_chunks;
      SddmmUnit unit = {};
      unit.row_chunk = i * (rows / kChunk);
      unit.chunk_count[0] = rows == 128 ? chunks : (chunks + 1) / 2;
      unit.chunk_count[1] = chunks - unit.chunk_count[0];
      for (int c = 0; c < chunks; ++c) {
        const int block = p + c / block_chunks;
        const int slot = c < unit.chunk_count[0] ? c : 4 + c - unit.chunk_count[0];
        unit.input_chunk[slot] = pattern.col[block] * block_chunks + c % block_chunks;
        unit.gradient_chunk[slot] = block * rows * block_chunks + c % block_chunks;
      }
      units.push_back(unit);
    }
  }
  return units;
}

// Fewer units than workers: unit u is divided into parts[u] token ranges of equal length.
void DivideUnits(int total_steps, int workers, const std::vector<double>& cost,
                 SddmmSchedule* schedule) {
  const int units = static_cast<int>(cost.size());
  const int max_parts = std::max(1, total_steps / kMinSliceSteps);
  std::vector<int> parts(units, 1);
  // Always divide the unit whose parts are longest, as long as workers are left.
  using Part = std::pair<double, int>;
  std::priority_queue<Part> longest;
  for (int u = 0; u < units; ++u) longest.push({cost[u], -u});
  int used = units;
  while (used < workers) {
    // Units as long as the longest must all be divided, or the division gains nothing.
    std::vector<int> equal;
    const double top = longest.top().first;
    while (!longest.empty() && longest.top().first >= top * 0.999) {
      equal.push_back(-longest.top().second);
      longest.pop();
    }
    const bool possible = used + static_cast<int>(equal.size()) <= workers &&
                          parts[equal.front()] < max_parts;
    if (!possible) break;
    used += static_cast<int>(equal.size());
    for (int u : equal) longest.push({cost[u] / ++parts[u], -u});
  }
  std::vector<SddmmSegment> segments;
  for (int u = 0; u < units; ++u) {
    if (parts[u] > 1) {
      schedule->reductions.push_back({u, schedule->slot_count, parts[u]});
    }
    for (int k = 0; k < parts[u]; ++k) {
      const int begin = static_cast<int>(int64_t{total_steps} * k / parts[u]);
      const int end = static_cast<int>(int64_t{total_steps} * (k + 1) / parts[u]);
      const int target = parts[u] > 1 ? schedule->slot_count++ : kTargetGradient;
      segments.push_back({u, begin * kChunk, end - begin, target});
    }
  }
  std::tie(schedule->segments, schedule->worker_begin) =
      Deal<SddmmSegment>(segments, workers, [&](const SddmmSegment& s) {
        return s.step_count * cost[s.unit];
      });
}

// The level to which `amount` fills up workers that are loaded unequally.
double FillLevel(std::vector<double> loads, double amount) {
  std::sort(loads.begin(), loads.end());
  double below = 0;
  for (size_t n = 1; n <= loads.size(); ++n) {
    below += loads[n - 1];
    const double level = (below + amount) / n;
    if (n == loads.size() || level <= loads[n]) return level;
  }
  return 0;
}

// More units than workers: whole units first, the rest as slices taken up in passing.
void OwnUnits(int total_steps, int workers, const std::vector<double>& cost,
              SddmmSchedule* schedule) {
  const int units = static_cast<int>(cost.size());
  const int passes = units / workers;
  std::vector<int> order(units);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] > cost[b]; });
  // Back and forth over the workers, so that cheap units meet expensive ones.
  std::vector<std::vector<int>> own(workers);
  std::vector<double> load(workers, 0.0);
  for (int k = 0; k < passes * workers; ++k) {
    const int pass = k / workers;
    const int worker = pass % 2 == 0 ? k % workers : workers - 1 - k % workers;
    own[worker].push_back(order[k]);
    load[worker] += cost[order[k]] * total_steps;
  }
  double left = 0;
  for (int k = passes * workers; k < units; ++k) left += cost[order[k]] * total_steps;
  const double level = FillLevel(load, left);

  int extra = passes * workers;  // cursor into `order`, and the step it has reached
  int reached = 0;
  schedule->worker_begin = {0};
  for (int w = 0; w < workers; ++w) {
    double spare = level - load[w];
    std::vector<SddmmSegment> slices;
    while (extra < units) {
      const int u = order[extra];
      int steps = std::min(static_cast<int>(std::ceil(spare / cost[u])), total_steps - reached);
      if (total_steps - reached - steps < kMinSliceSteps) steps = total_steps - reached;
      const bool last_worker = w == workers - 1;
      if (last_worker) steps = total_steps - reached;
      if (steps < kMinSliceSteps && steps < total_steps - reached) break;
      if (spare <= 0 && !last_worker) break;
      if (reached == 0) schedule->reductions.push_back({u, schedule->slot_count, 0});
      ++schedule->reductions.back().slot_count;
      slices.push_back({u, reached * kChunk, steps, schedule->slot_count++});
      spare -= steps * cost[u];
      reached += steps;
      if (reached == total_steps) {
        ++extra;
        reached = 0;
      }
    }
    for (size_t k = 0; k < own[w].size(); ++k) {
      const int u = own[w][k];
      if (k + 1 < own[w].size() || slices.empty()) {
        schedule->segments.push_back({u, 0, total_steps, kTargetGradient});
        continue;
      }
      int done = 0;
      std::stable_sort(slices.begin(), slices.end(),
                       [](const auto& a, const auto& b) { return a.token_begin < b.token_begin; });
      for (const SddmmSegment& slice : slices) {
        const int at = slice.token_begin / kChunk;
        if (at > done) {
          schedule->segments.push_back({u, done * kChunk, at - done,
                                        done == 0 ? kTargetGradient : kTargetGradientAdd});
          done = at;
        }
        schedule->segments.push_back(slice);
      }
      schedule->segments.push_back({u, done * kChunk, total_steps - done,
                                    done == 0 ? kTargetGradient : kTargetGradientAdd});
    }
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
  }
}

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  SddmmSchedule schedule;
  schedule.units = MakeUnits(pattern);
  std::vector<double> cost;
  for (const SddmmUnit& unit : schedule.units) cost.push_back(UnitCost(unit, pattern.block.rows));
  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  if (static_cast<int>(cost.size()) < workers) {
    if (cost.empty()) {
      schedule.worker_begin.assign(workers + 1, 0);
    } else {
      DivideUnits(total_steps, workers, cost, &schedule);
    }
  } else {
    OwnUnits(total_steps, workers, cost, &schedule);
  }
  return schedule;
}

}  // namespace filigree
