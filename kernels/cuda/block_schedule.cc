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

// A unit's cost per token relative to a full one: the bytes that a CTA's operands take.
double UnitCost(const SddmmUnit& unit, int rows, const SddmmTiling& tiling) {
  const auto [first, second] = unit.chunk_count;
  if (rows == 64) return (1 + first + second) / 9.0;
  const double row_chunks = 2.0 / tiling.cluster;
  return (row_chunks + std::max(first, second)) / (row_chunks + 4);
}

// Cuts every block row into as few units as possible, of lengths as equal as possible: units that
// differ in cost differ in pace, and the slower ones find the operands gone from the L2.
std::vector<SddmmUnit> MakeUnits(const BsrPattern& pattern, const SddmmTiling& tiling) {
  const auto [rows, cols] = pattern.block;
  const int banks = rows == 128 ? tiling.cluster : 2;
  const int block_chunks = cols / kChunk;
  std::vector<SddmmUnit> units;
  for (int i = 0; i < pattern.block_row_count; ++i) {
    const int row_begin = pattern.row_begin[i] * block_chunks;
    // In columns of `banks` chunks, one for every bank.
    const int chunks = pattern.row_begin[i + 1] * block_chunks - row_begin;
    const int columns = (chunks + banks - 1) / banks;
    const int parts = (columns + 3) / 4;
    for (int k = 0; k < parts; ++k) {
      const int begin = columns * k / parts * banks;
      const int end = std::min(columns * (k + 1) / parts * banks, chunks);
      SddmmUnit unit = {};
      unit.row_chunk = i * (rows / kChunk);
      unit.chunk_count[0] = (end - begin + banks - 1) / banks;
      unit.chunk_count[1] = end - begin - unit.chunk_count[0];
      for (int c = begin; c < end; ++c) {
        const int block = (row_begin + c) / block_chunks;
        const int offset = c - begin;
        const int slot = offset < unit.chunk_count[0] ? offset : 4 + offset - unit.chunk_count[0];
        unit.input_chunk[slot] = pattern.col[block] * block_chunks + c % block_chunks;
        unit.gradient_chunk[slot] = block * rows * block_chunks + c % block_chunks;
      }
      units.push_back(unit);
    }
  }
  return units;
}

// A worker's own token range of a unit, and the pieces of it that other workers take over.
struct OwnRange {
  int unit = 0;
  int begin = 0, end = 0;  // steps
  int give = 0;            // steps still to be given away
  std::vector<std::pair<int, int>> given;
};

// A place for `size` steps of the range that are not given away yet, nearest to where the sweep of
// the taker stands; -1 if there is none.
int FindPiece(const OwnRange& range, int size, int elapsed) {
  std::vector<int> candidates = {std::min(range.begin + elapsed, range.end - size)};
  for (const auto& [begin, end] : range.given) {
    candidates.push_back(end);
    candidates.push_back(begin - size);
  }
  for (int at : candidates) {
    const bool inside = at >= range.begin && at + size <= range.end;
    const bool clear = std::all_of(range.given.begin(), range.given.end(), [&](const auto& piece) {
      return at + size <= piece.first || at >= piece.second;
    });
    if (inside && clear) return at;
  }
  return -1;
}

// What is left of a range, summed in the same accumulators across the gaps.
void AppendRange(OwnRange range, int target, std::vector<SddmmSegment>* segments) {
  std::sort(range.given.begin(), range.given.end());
  range.given.push_back({range.end, range.end});
  int at = range.begin;
  for (const auto& [begin, end] : range.given) {
    if (begin > at) segments->push_back({range.unit, at * kChunk, begin - at, kTargetCarry});
    at = end;
  }
  segments->back().target = target;
}

// Into how many equal parts to divide each unit: all units of the greatest part length at a time, as
// long as every part still gets a worker of its own.
std::vector<int> CountParts(const std::vector<double>& cost, int workers, int max_parts) {
  std::vector<int> parts(cost.size(), 1);
  int used = static_cast<int>(cost.size());
  while (true) {
    double top = 0;
    for (size_t u = 0; u < cost.size(); ++u) top = std::max(top, cost[u] / parts[u]);
    std::vector<size_t> longest;
    for (size_t u = 0; u < cost.size(); ++u) {
      if (cost[u] / parts[u] >= top * 0.999) longest.push_back(u);
    }
    used += static_cast<int>(longest.size());
    if (used > workers || parts[longest.front()] >= max_parts) return parts;
    for (size_t u : longest) ++parts[u];
  }
}

// Fewer units than workers: units are divided into token ranges, one a worker, and ranges longer than
// the mean give pieces to the workers that are left idle or have shorter ones.
void DivideUnits(int total_steps, int workers, const std::vector<double>& cost,
                 SddmmSchedule* schedule) {
  const std::vector<int> parts =
      CountParts(cost, workers, std::max(1, total_steps / kMinSliceSteps));
  const double level = std::accumulate(cost.begin(), cost.end(), 0.0) * total_steps / workers;
  std::vector<OwnRange> ranges;
  std::vector<double> load(workers, 0.0);
  for (size_t u = 0; u < cost.size(); ++u) {
    for (int k = 0; k < parts[u]; ++k) {
      OwnRange range = {.unit = static_cast<int>(u),
                        .begin = static_cast<int>(int64_t{total_steps} * k / parts[u]),
                        .end = static_cast<int>(int64_t{total_steps} * (k + 1) / parts[u])};
      const int length = range.end - range.begin;
      range.give = std::max(0, static_cast<int>(length - level / cost[u]));
      if (range.give < kMinSliceSteps) range.give = 0;
      load[ranges.size()] = (length - range.give) * cost[u];
      ranges.push_back(std::move(range));
    }
  }

  std::vector<int> takers(workers);
  std::iota(takers.begin(), takers.end(), 0);
  std::stable_sort(takers.begin(), takers.end(), [&](int a, int b) { return load[a] < load[b]; });
  struct Taken {
    int unit, begin, size;
  };
  std::vector<std::vector<Taken>> taken(workers);
  size_t giver = 0;
  for (int w : takers) {
    while (giver < ranges.size() && (ranges[giver].give == 0 || load[w] + 1 < level)) {
      OwnRange& range = ranges[giver];
      if (range.give == 0) {
        ++giver;
        continue;
      }
      const double unit_cost = cost[range.unit];
      int size = static_cast<int>(std::ceil((level - load[w]) / unit_cost));
      size = std::min(std::max(size, kMinSliceSteps), range.give);
      if (range.give - size < kMinSliceSteps) size = range.give;
      const int at = FindPiece(range, size, static_cast<int>(load[w]));
      range.give -= size;
      if (at < 0) continue;  // no room in one piece: the owner keeps it
      range.given.push_back({at, at + size});
      taken[w].push_back({range.unit, at, size});
      load[w] += size * unit_cost;
    }
  }

  // The first range of a unit goes to the gradient itself, everything else through partial sums,
  // numbered unit by unit.
  std::vector<int> next_slot(cost.size());
  std::vector<int> others(cost.size(), 0);
  for (size_t u = 0; u < cost.size(); ++u) others[u] = parts[u] - 1;
  for (const auto& list : taken) {
    for (const Taken& piece : list) ++others[piece.unit];
  }
  for (size_t u = 0; u < cost.size(); ++u) {
    next_slot[u] = schedule->slot_count;
    if (others[u] == 0) continue;
    schedule->reductions.push_back({static_cast<int>(u), schedule->slot_count, others[u]});
    schedule->slot_count += others[u];
  }
  schedule->worker_begin = {0};
  for (int w = 0; w < workers; ++w) {
    if (w < static_cast<int>(ranges.size())) {
      const OwnRange& range = ranges[w];
      const int target = range.begin == 0 ? kTargetGradient : next_slot[range.unit]++;
      AppendRange(range, target, &schedule->segments);
    }
    for (const Taken& piece : taken[w]) {
      schedule->segments.push_back(
          {piece.unit, piece.begin * kChunk, piece.size, next_slot[piece.unit]++});
    }
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
  }
}

// More units than workers: whole units first, the rest as slices taken up in passing. Workers whose
// own units exceed the mean give pieces of their last one to those that still have time left.
void OwnUnits(int total_steps, int workers, const std::vector<double>& cost,
              SddmmSchedule* schedule) {
  const int units = static_cast<int>(cost.size());
  const int passes = units / workers;
  const double level = std::accumulate(cost.begin(), cost.end(), 0.0) * total_steps / workers;
  std::vector<int> order(units);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] > cost[b]; });
  // Back and forth over the workers, so that cheap units meet expensive ones.
  std::vector<std::vector<int>> own(workers);
  std::vector<OwnRange> last(workers);
  std::vector<double> load(workers, 0.0);
  for (int k = 0; k < passes * workers; ++k) {
    const int pass = k / workers;
    const int worker = pass % 2 == 0 ? k % workers : workers - 1 - k % workers;
    own[worker].push_back(order[k]);
    load[worker] += cost[order[k]] * total_steps;
  }
  for (int w = 0; w < workers; ++w) {
    last[w] = {.unit = own[w].back(), .begin = 0, .end = total_steps};
    const int excess = static_cast<int>((load[w] - level) / cost[last[w].unit]);
    last[w].give = excess < kMinSliceSteps ? 0 : std::min(excess, total_steps / 2);
    load[w] -= last[w].give * cost[last[w].unit];
  }

  std::vector<std::vector<SddmmSegment>> slices(workers);
  int extra = passes * workers;  // cursor into `order`, and the step it has reached
  int reached = 0;
  const auto add_partial = [&](int unit) {
    if (schedule->reductions.empty() || schedule->reductions.back().unit != unit) {
      schedule->reductions.push_back({unit, schedule->slot_count, 0});
    }
    ++schedule->reductions.back().slot_count;
    return schedule->slot_count++;
  };
  for (int w = 0; extra < units; w = (w + 1) % workers) {
    while (extra < units && load[w] < level) {
      const int u = order[extra];
      // A slice too short to pay for its partial sum is made longer: workers further on get less.
      int steps = std::max(kMinSliceSteps, static_cast<int>(std::ceil((level - load[w]) / cost[u])));
      if (total_steps - reached - steps < kMinSliceSteps) steps = total_steps - reached;
      const int target = reached == 0 ? kTargetGradient : add_partial(u);
      slices[w].push_back({u, reached * kChunk, steps, target});
      load[w] += steps * cost[u];
      reached += steps;
      if (reached == total_steps) {
        ++extra;
        reached = 0;
      }
    }
  }

  std::vector<std::vector<SddmmSegment>> taken(workers);
  int taker = 0;
  for (OwnRange& range : last) {
    const double unit_cost = cost[range.unit];
    while (range.give > 0) {
      while (taker < workers && load[taker] + kMinSliceSteps / 2 * unit_cost > level) ++taker;
      if (taker == workers) break;  // the rest stays with its owner
      int size = static_cast<int>(std::ceil((level - load[taker]) / unit_cost));
      size = std::min(std::max(size, kMinSliceSteps), range.give);
      if (range.give - size < kMinSliceSteps) size = range.give;
      const int at = FindPiece(range, size, static_cast<int>(load[taker]));
      range.give -= size;
      if (at < 0) continue;
      range.given.push_back({at, at + size});
      taken[taker].push_back({range.unit, at * kChunk, size, add_partial(range.unit)});
      load[taker] += size * unit_cost;
    }
  }

  schedule->worker_begin = {0};
  for (int w = 0; w < workers; ++w) {
    for (size_t k = 0; k + 1 < own[w].size(); ++k) {
      schedule->segments.push_back({own[w][k], 0, total_steps, kTargetGradient});
    }
    std::stable_sort(slices[w].begin(), slices[w].end(),
                     [](const auto& a, const auto& b) { return a.token_begin < b.token_begin; });
    int done = 0;
    const auto own_until = [&](int end) {
      if (end <= done) return;
      OwnRange part = last[w];
      part.begin = done;
      part.end = end;
      std::erase_if(part.given, [&](const auto& p) { return p.second <= done || p.first >= end; });
      AppendRange(part, done == 0 ? kTargetGradient : kTargetGradientAdd, &schedule->segments);
      done = end;
    };
    for (const SddmmSegment& slice : slices[w]) {
      // A worker that gives pieces away has taken none: `given` and `slices` are never both filled.
      own_until(slice.token_begin / kChunk);
      schedule->segments.push_back(slice);
    }
    own_until(total_steps);
    schedule->segments.insert(schedule->segments.end(), taken[w].begin(), taken[w].end());
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
  }
}

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens,
                                 const SddmmTiling& tiling) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  CHECK(tiling.cluster == 1 || (tiling.cluster == 2 && pattern.block.rows == 128));
  SddmmSchedule schedule;
  schedule.units = MakeUnits(pattern, tiling);
  std::vector<double> cost;
  for (const SddmmUnit& unit : schedule.units) {
    cost.push_back(UnitCost(unit, pattern.block.rows, tiling));
  }
  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  if (cost.empty()) {
    schedule.worker_begin.assign(tiling.workers + 1, 0);
  } else if (static_cast<int>(cost.size()) <= tiling.workers) {
    DivideUnits(total_steps, tiling.workers, cost, &schedule);
  } else {
    OwnUnits(total_steps, tiling.workers, cost, &schedule);
  }
  return schedule;
}

}  // namespace filigree
