// The schedule of the weight gradient (block_schedule.h): a plan (sddmm_plan.h) as lists.
#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/schedule_dealing.h"
#include "kernels/cuda/sddmm_plan.h"
#include "kernels/cuda/sddmm_units.h"

namespace filigree {
namespace {

// Lists the segments worker by worker; each would write its unit's gradient.
void ListSegments(const SddmmPlan& plan, SddmmSchedule* schedule) {
  schedule->worker_begin = {0};
  for (const std::vector<SddmmSlice>& list : plan.lists) {
    int steps = 0;
    for (const SddmmSlice& slice : list) {
      schedule->segments.push_back(
          {slice.unit, slice.begin * kChunk, slice.steps, kTargetGradient});
      steps += slice.steps;
    }
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
    schedule->worker_steps = std::max(schedule->worker_steps, steps);
  }
}

// Numbers the partial sums of divided units in the order of their tokens. The last segment in the
// list, the highest worker's, has none and writes the gradient, unless a second kernel adds up.
void NumberPartials(bool reduces, SddmmSchedule* schedule) {
  std::vector<std::vector<SddmmSegment*>> by_unit(schedule->units.size());
  for (SddmmSegment& segment : schedule->segments) by_unit[segment.unit].push_back(&segment);
  for (size_t u = 0; u < by_unit.size(); ++u) {
    std::vector<SddmmSegment*>& segments = by_unit[u];
    schedule->units[u].slot_begin = schedule->slot_count;
    if (segments.size() < 2) continue;
    if (reduces) {
      schedule->reductions.push_back(static_cast<int32_t>(u));
    } else {
      segments.pop_back();
    }
    std::sort(segments.begin(), segments.end(), [](const SddmmSegment* a, const SddmmSegment* b) {
      return a->token_begin < b->token_begin;
    });
    for (SddmmSegment* segment : segments) segment->target = schedule->slot_count++;
    schedule->units[u].slot_count = static_cast<int32_t>(segments.size());
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

// Waiting pays only where all are at the same tokens. Measured on an H100 then: with slices of 128
// it gains 1 to 4 % where device memory bounds the time, and costs 3 to 10 % where products do;
// with slices of 64, which the L2 bounds, it gains 7 to 15 % of a sweep over all tokens, and costs
// up to 7 % of shorter ones.
bool IsPaced(const BsrPattern& pattern, const SddmmPlan& plan) {
  if (plan.rests) return false;
  if (std::max(pattern.block.rows, pattern.block.cols) == 64) return plan.whole;
  return IsSddmmMemoryBound(pattern.stored_count(), pattern.out_features(), pattern.in_features());
}

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers,
                                 const SddmmForm& form) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  SddmmSchedule schedule;
  const bool column_sums =
      form.column_sums && pattern.block.rows >= pattern.block.cols && pattern.block_count() > 0;
  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  const int a_chunks = std::max(pattern.block.rows, pattern.block.cols) / kChunk;
  SddmmPlan plan;
  for (std::vector<SddmmUnit>& units : MakeSddmmUnits(pattern, {.column_sums = column_sums})) {
    SddmmPlan next = ChooseSddmmPlan(units, a_chunks, total_steps, workers);
    if (!schedule.units.empty() && next.microseconds >= plan.microseconds) continue;
    schedule.units = std::move(units);
    plan = std::move(next);
  }
  schedule.worker_begin.assign(workers + 1, 0);
  if (schedule.units.empty()) return schedule;
  schedule.paced = IsPaced(pattern, plan);
  ListSegments(plan, &schedule);
  NumberPartials(plan.reduces, &schedule);
  CHECK_LE(schedule.slot_count, kSddmmMaxSlots);
  if (column_sums) {
    ListColumnSums(pattern.block_row_count, pattern.block.rows, &schedule);
  }
  return schedule;
}

}  // namespace filigree
