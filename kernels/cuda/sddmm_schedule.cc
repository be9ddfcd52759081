// The schedule of the weight gradient (block_schedule.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/schedule_dealing.h"

namespace filigree {
namespace {

// A token range shorter than this is not worth a partial sum of its own.
constexpr int kMinSliceSteps = 8;

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

std::vector<std::vector<Chunk>> ListChunks(const BsrPattern& pattern,
                                           SddmmOrientation orientation) {
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

// Deals the four slices of every step to the warpgroups that read an A slice: the units of one list
// lie one after the other, and with slices of 128 both warpgroups have columns of their own.
void ShareColumnSums(int a_width, std::vector<SddmmUnit>* units) {
  constexpr int kSlices = 4;
  for (size_t begin = 0, end = 0; begin < units->size(); begin = end) {
    std::vector<std::pair<SddmmUnit*, int>> takers;  // and their warpgroup
    while (end < units->size() && (*units)[end].a_chunk == (*units)[begin].a_chunk) {
      SddmmUnit* unit = &(*units)[end++];
      for (int group = 0; group < (a_width == 128 ? 1 : 2); ++group) {
        if (group == 0 || unit->chunk_count[group] > 0) takers.push_back({unit, group});
      }
    }
    // Two of three readers take one slice each, the third two.
    const int readers = std::min(kSlices, static_cast<int>(takers.size()));
    int first = 0;
    for (int i = 0; i < readers; ++i) {
      const auto [unit, group] = takers[i];
      const int count = readers == 3 ? (i == 0 ? 2 : 1) : kSlices / readers;
      for (int g = group; g < (a_width == 128 ? 2 : group + 1); ++g) {
        unit->sum_first[g] = first;
        unit->sum_count[g] = count;
      }
      first += count;
    }
  }
}

std::vector<SddmmUnit> MakeUnits(const BsrPattern& pattern, SddmmOrientation orientation,
                                 bool column_sums) {
  const int a_width =
      orientation == SddmmOrientation::kRows ? pattern.block.rows : pattern.block.cols;
  const int max_chunks = a_width == 128 ? 4 : 8;
  const auto lists = ListChunks(pattern, orientation);
  std::vector<SddmmUnit> units;
  for (size_t i = 0; i < lists.size(); ++i) {
    const int chunks = static_cast<int>(lists[i].size());
    const int parts = std::max(column_sums ? 1 : 0, (chunks + max_chunks - 1) / max_chunks);
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
  if (column_sums) ShareColumnSums(a_width, &units);
  return units;
}

// What a partial sum costs, written and read again, in steps of a full unit; and the second kernel.
constexpr double kSlotSteps = 0.4;
constexpr double kReductionSteps = 6;

double SlotCost(int slots) { return slots == 0 ? 0 : kReductionSteps + kSlotSteps * slots; }

// A full unit's token range is divided into `parts`, a cheaper one's into fewer; ranges are dealt
// in the order of their tokens. Returns the estimated time in steps.
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

// Fewer units than workers, but more than half as many: every unit has a worker, which leaves its
// last tokens to the workers without a unit; those take the ends of several units one after the
// other. Infinite where that does not work out.
double LeaveEnds(int total_steps, int workers, const std::vector<double>& cost,
                 SddmmSchedule* schedule) {
  const int units = static_cast<int>(cost.size()), spare = workers - units;
  if (spare <= 0 || spare >= units) return std::numeric_limits<double>::infinity();
  const int rounds = (units + spare - 1) / spare;
  const int end_steps = total_steps / (rounds + 1), own_steps = total_steps - end_steps;
  if (end_steps < kMinSliceSteps) return std::numeric_limits<double>::infinity();
  schedule->worker_begin = {0};
  double longest = 0;
  const auto take = [&](int u, int begin, int steps, int target) {
    schedule->segments.push_back({u, begin * kChunk, steps, target});
    return steps * cost[u];
  };
  for (int u = 0; u < units; ++u) {
    longest = std::max(longest, take(u, 0, own_steps, kTargetGradient));
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
    schedule->reductions.push_back({.unit = u, .slot_begin = u, .slot_count = 1});
  }
  for (int k = 0; k < spare; ++k) {
    double load = 0;
    for (int u = k; u < units; u += spare) load += take(u, own_steps, end_steps, u);
    longest = std::max(longest, load);
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
  }
  schedule->slot_count = units;
  return longest + SlotCost(units);
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
  // NOTE: a worker that pauses for a slice falls behind the others' sweep by the slice; measured on
  // an H100, the misses this causes cost about twice the slice.
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

// The segments whose column sums make up those of a block row.
void ListColumnSums(int block_row_count, int a_width, SddmmSchedule* schedule) {
  std::vector<std::vector<int32_t>> by_row(block_row_count);
  for (size_t s = 0; s < schedule->segments.size(); ++s) {
    const SddmmUnit& unit = schedule->units[schedule->segments[s].unit];
    if (unit.sum_count[0] + unit.sum_count[1] == 0) continue;
    by_row[unit.a_chunk / (a_width / kChunk)].push_back(static_cast<int32_t>(s));
  }
  std::vector<int32_t> begin = {0}, list;
  for (std::vector<int32_t>& segments : by_row) {
    CHECK(!segments.empty());
    std::sort(segments.begin(), segments.end(), [&](int32_t a, int32_t b) {
      const SddmmSegment &x = schedule->segments[a], &y = schedule->segments[b];
      return std::tie(x.unit, x.token_begin) < std::tie(y.unit, y.token_begin);
    });
    list.insert(list.end(), segments.begin(), segments.end());
    begin.push_back(static_cast<int32_t>(list.size()));
  }
  schedule->sum_begin = std::move(begin);
  schedule->sum_segments = std::move(list);
}

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers,
                                 const SddmmForm& form) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  SddmmSchedule best;
  double best_steps = 0;
  std::vector<double> cost;
  const bool column_sums =
      form.column_sums && pattern.block.rows >= pattern.block.cols && pattern.block_count() > 0;
  for (const auto orientation : {SddmmOrientation::kRows, SddmmOrientation::kColumns}) {
    const bool by_rows = orientation == SddmmOrientation::kRows;
    const int a_width = by_rows ? pattern.block.rows : pattern.block.cols;
    const int b_width = by_rows ? pattern.block.cols : pattern.block.rows;
    if (a_width < b_width) continue;  // the wider slice is the one to share
    // Sums on the way are worth more than a unit less.
    if (column_sums && !by_rows) continue;
    std::vector<SddmmUnit> units = MakeUnits(pattern, orientation, column_sums);
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
  SddmmSchedule ends;
  const double steps_with_ends = LeaveEnds(total_steps, workers, cost, &ends);
  // Measured on an H100: of 8 % by this count 2 % were left, so that less than that is no gain.
  constexpr double kEndsMargin = 1.06;
  if (std::isfinite(steps_with_ends)) consider(kEndsMargin * steps_with_ends, ends);
  if (static_cast<int>(cost.size()) > workers) {
    SddmmSchedule candidate;
    const double steps = OwnUnits(total_steps, workers, cost, &candidate);
    consider(steps, candidate);
  }
  if (form.whole_sums) SumInPartials(&best);
  if (column_sums) ListColumnSums(pattern.block_row_count, pattern.block.rows, &best);
  for (int w = 0; w < workers; ++w) {
    int steps = 0;
    for (int s = best.worker_begin[w]; s < best.worker_begin[w + 1]; ++s) {
      steps += best.segments[s].step_count;
    }
    best.worker_steps = std::max(best.worker_steps, steps);
  }
  return best;
}

}  // namespace filigree
