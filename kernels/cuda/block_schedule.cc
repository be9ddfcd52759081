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
  CHECK(pattern.value_begin.empty() || pattern.value_begin.size() == pattern.col.size());
  CHECK_LE(pattern.value_extent() / kChunk, int64_t{1} << 31);
  // SpmmStep::input_chunk has 16 bits.
  CHECK_LE(std::max(pattern.in_features(), pattern.out_features()) / kChunk, 32767);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      CHECK(pattern.col[p] >= 0 && pattern.col[p] < pattern.block_col_count);
      CHECK(p == pattern.row_begin[i] || pattern.col[p] > pattern.col[p - 1])
          << "columns of block row " << i << " do not ascend";
      CHECK(pattern.ValueBegin(p) % std::max(pattern.block.cols, kChunk) == 0);
    }
  }
}

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

// Deals items in order, each to the worker that is free first (lowest index on a tie). `longest`, if
// given, receives the time at which the last worker is done.
template <typename Item, typename Cost>
std::pair<std::vector<Item>, std::vector<int32_t>> Deal(const std::vector<Item>& items, int workers,
                                                        Cost cost, double* longest = nullptr) {
  using Free = std::pair<double, int>;
  std::priority_queue<Free, std::vector<Free>, std::greater<>> queue;
  for (int w = 0; w < workers; ++w) queue.push({0.0, w});
  std::vector<std::vector<Item>> lists(workers);
  for (const Item& item : items) {
    auto [time, worker] = queue.top();
    queue.pop();
    lists[worker].push_back(item);
    queue.push({time + cost(item), worker});
    if (longest != nullptr) *longest = std::max(*longest, time + cost(item));
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
                               const SpmmTiling& tiling, std::span<const FactorPart> factors) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - tiling.tile_tokens);
  SpmmSchedule schedule;
  const std::vector<int> ranges = AppendSteps(pattern, transposed, factors, &schedule.steps);
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
double UnitCost(const SddmmUnit& unit, int a_width) {
  const int chunks = unit.chunk_count[0] + unit.chunk_count[1];
  return a_width == 64 ? (1 + chunks) / 9.0 : (2 + chunks) / 6.0;
}

// The chunks of B that one A slice meets, and where their gradients lie.
struct Chunk {
  int b_chunk;
  int gradient_chunk;
};

std::vector<std::vector<Chunk>> ListChunks(const BsrPattern& pattern, SddmmOrientation orientation) {
  const auto [rows, cols] = pattern.block;
  const bool by_rows = orientation == SddmmOrientation::kRows;
  std::vector<std::vector<Chunk>> lists(by_rows ? pattern.block_row_count
                                                : pattern.block_col_count);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      const int j = pattern.col[p];
      const auto first = static_cast<int>(pattern.ValueBegin(p) / kChunk);
      for (int c = 0; c < (by_rows ? cols : rows) / kChunk; ++c) {
        if (by_rows) {
          lists[i].push_back({j * (cols / kChunk) + c, first + c});
        } else {
          lists[j].push_back({i * (rows / kChunk) + c, first + c * cols});
        }
      }
    }
  }
  return lists;
}

std::vector<SddmmUnit> MakeUnits(const BsrPattern& pattern, SddmmOrientation orientation) {
  const int a_width =
      orientation == SddmmOrientation::kRows ? pattern.block.rows : pattern.block.cols;
  const int max_chunks = a_width == 128 ? 4 : 8;
  const auto lists = ListChunks(pattern, orientation);
  std::vector<SddmmUnit> units;
  for (size_t i = 0; i < lists.size(); ++i) {
    const int chunks = static_cast<int>(lists[i].size());
    const int parts = (chunks + max_chunks - 1) / max_chunks;
    for (int k = 0; k < parts; ++k) {
      int begin = max_chunks * k;
      int end = std::min(begin + max_chunks, chunks);
      if (a_width == 64) {  // tuned on an H100: equal parts, which keep one pace, gain a fifth here
        begin = chunks * k / parts;
        end = chunks * (k + 1) / parts;
      }
      SddmmUnit unit = {};
      unit.a_chunk = static_cast<int>(i) * (a_width / kChunk);
      unit.chunk_count[0] = a_width == 128 ? end - begin : (end - begin + 1) / 2;
      unit.chunk_count[1] = end - begin - unit.chunk_count[0];
      for (int c = begin; c < end; ++c) {
        const int offset = c - begin;
        const int slot = offset < unit.chunk_count[0] ? offset : 4 + offset - unit.chunk_count[0];
        unit.b_chunk[slot] = lists[i][c].b_chunk;
        unit.gradient_chunk[slot] = lists[i][c].gradient_chunk;
      }
      units.push_back(unit);
    }
  }
  return units;
}

// What a partial sum costs, written and read again, in steps of a full unit; and the second kernel.
constexpr double kSlotSteps = 0.4;
constexpr double kReductionSteps = 6;

double SlotCost(int slots) { return slots == 0 ? 0 : kReductionSteps + kSlotSteps * slots; }

// A full unit's token range is divided into `parts`, a cheaper one's into fewer; ranges are dealt in
// the order of their tokens. Returns the estimated time in steps.
double DivideUnits(int total_steps, int workers, const std::vector<double>& cost, int parts,
                   SddmmSchedule* schedule) {
  std::vector<SddmmSegment> segments;
  for (size_t u = 0; u < cost.size(); ++u) {
    const int count = std::max(1, static_cast<int>(std::ceil(cost[u] * parts - 1e-9)));
    if (count > 1) {
      schedule->reductions.push_back({static_cast<int>(u), schedule->slot_count, count - 1});
    }
    for (int k = 0; k < count; ++k) {
      const int begin = static_cast<int>(int64_t{total_steps} * k / count);
      const int end = static_cast<int>(int64_t{total_steps} * (k + 1) / count);
      const int target = k == 0 ? kTargetGradient : schedule->slot_count++;
      segments.push_back({static_cast<int>(u), begin * kChunk, end - begin, target});
    }
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const auto& a, const auto& b) { return a.token_begin < b.token_begin; });
  double longest = 0;
  std::tie(schedule->segments, schedule->worker_begin) = Deal<SddmmSegment>(
      segments, workers, [&](const SddmmSegment& s) { return s.step_count * cost[s.unit]; },
      &longest);
  return longest + SlotCost(schedule->slot_count);
}

// More units than workers: whole units first, the rest as slices taken up in passing.
double OwnUnits(int total_steps, int workers, const std::vector<double>& cost,
                SddmmSchedule* schedule) {
  const int units = static_cast<int>(cost.size());
  const int passes = units / workers;
  const double level = std::accumulate(cost.begin(), cost.end(), 0.0) * total_steps / workers;
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

  std::vector<std::vector<SddmmSegment>> slices(workers);
  int extra = passes * workers;  // cursor into `order`, and the step it has reached
  int reached = 0;
  // The level rises until everything is placed: workers above it take nothing.
  for (double fill = level; extra < units; fill += kMinSliceSteps) {
    for (int w = 0; w < workers; ++w) {
      while (extra < units && load[w] < fill) {
        const int u = order[extra];
        // A slice too short to pay for its partial sum is made longer: workers further on get less.
        int steps =
            std::max(kMinSliceSteps, static_cast<int>(std::ceil((fill - load[w]) / cost[u])));
        if (total_steps - reached - steps < kMinSliceSteps) steps = total_steps - reached;
        int target = kTargetGradient;
        if (reached > 0) {
          if (schedule->reductions.empty() || schedule->reductions.back().unit != u) {
            schedule->reductions.push_back({u, schedule->slot_count, 0});
          }
          ++schedule->reductions.back().slot_count;
          target = schedule->slot_count++;
        }
        slices[w].push_back({u, reached * kChunk, steps, target});
        load[w] += steps * cost[u];
        reached += steps;
        if (reached == total_steps) {
          ++extra;
          reached = 0;
        }
      }
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
      schedule->segments.push_back({own[w].back(), done * kChunk, end - done,
                                    done == 0 ? kTargetGradient : kTargetGradientAdd});
      done = end;
    };
    for (const SddmmSegment& slice : slices[w]) {
      own_until(slice.token_begin / kChunk);
      schedule->segments.push_back(slice);
    }
    own_until(total_steps);
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
  }
  // NOTE: a worker that pauses for a slice falls behind the others' sweep by the slice; measured on an
  // H100, the misses this causes cost about twice the slice.
  const double own_steps = std::accumulate(own[0].begin(), own[0].end(), 0.0,
                                           [&](double sum, int u) { return sum + cost[u]; }) *
                           total_steps;
  const double longest = *std::max_element(load.begin(), load.end());
  return longest + 2 * std::max(0.0, longest - own_steps) + SlotCost(schedule->slot_count);
}

// Gives every segment of a unit that has several a slot.
void SumInPartials(SddmmSchedule* schedule) {
  std::vector<std::vector<SddmmSegment*>> by_unit(schedule->units.size());
  for (SddmmSegment& segment : schedule->segments) by_unit[segment.unit].push_back(&segment);
  schedule->reductions.clear();
  schedule->slot_count = 0;
  for (std::vector<SddmmSegment*>& segments : by_unit) {
    if (segments.size() < 2) continue;
    std::sort(segments.begin(), segments.end(), [](const SddmmSegment* a, const SddmmSegment* b) {
      return a->token_begin < b->token_begin;
    });
    schedule->reductions.push_back({.unit = segments.front()->unit,
                                    .slot_begin = schedule->slot_count,
                                    .slot_count = static_cast<int>(segments.size())});
    for (SddmmSegment* segment : segments) segment->target = schedule->slot_count++;
  }
}

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers,
                                 bool whole_sums) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  SddmmSchedule best;
  double best_steps = 0;
  std::vector<double> cost;
  for (const auto orientation : {SddmmOrientation::kRows, SddmmOrientation::kColumns}) {
    const bool by_rows = orientation == SddmmOrientation::kRows;
    const int a_width = by_rows ? pattern.block.rows : pattern.block.cols;
    const int b_width = by_rows ? pattern.block.cols : pattern.block.rows;
    if (a_width < b_width) continue;  // the wider slice is the one to share
    std::vector<SddmmUnit> units = MakeUnits(pattern, orientation);
    if (!best.units.empty() && units.size() >= best.units.size()) continue;
    best.orientation = orientation;
    best.units = std::move(units);
    cost.clear();
    for (const SddmmUnit& unit : best.units) cost.push_back(UnitCost(unit, a_width));
  }
  best.worker_begin.assign(workers + 1, 0);
  if (cost.empty()) return best;

  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  const auto consider = [&](double steps, SddmmSchedule& candidate) {
    if (best.segments.empty() || steps < best_steps) {
      best_steps = steps;
      candidate.orientation = best.orientation;
      candidate.units = std::move(best.units);
      best = std::move(candidate);
    }
  };
  constexpr int kMaxParts = 16;
  for (int parts = 1; parts <= kMaxParts && total_steps / parts >= kMinSliceSteps; ++parts) {
    SddmmSchedule candidate;
    const double steps = DivideUnits(total_steps, workers, cost, parts, &candidate);
    consider(steps, candidate);
  }
  if (best.segments.empty()) {
    SddmmSchedule candidate;
    const double steps = DivideUnits(total_steps, workers, cost, 1, &candidate);
    consider(steps, candidate);
  }
  if (static_cast<int>(cost.size()) > workers) {
    SddmmSchedule candidate;
    const double steps = OwnUnits(total_steps, workers, cost, &candidate);
    consider(steps, candidate);
  }
  if (whole_sums) SumInPartials(&best);
  return best;
}

}  // namespace filigree
