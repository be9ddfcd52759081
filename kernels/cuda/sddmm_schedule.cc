// The schedule of the weight gradient (block_schedule.h): whole units, then shared ones.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/schedule_dealing.h"
#include "kernels/cuda/sddmm_units.h"

namespace filigree {
namespace {

// A token range shorter than this is not worth a partial sum of its own.
constexpr int kMinSliceSteps = 8;
// What partial sums cost, in steps of a full unit: leaving accumulators and beginning anew; for the
// worker that adds one up; and for all, since they pass through the L2.
constexpr double kFlushSteps = 4, kAddSteps = 3, kTrafficSteps = 0.07;
// Division must promise this much.
constexpr double kMargin = 1.03;

struct Slice {
  int unit, begin, steps;
};

// What every worker does, in order, and when the last one is done.
struct Plan {
  std::vector<std::vector<Slice>> lists;
  double steps = 0;
};

// As many whole units to every worker as there are for all, dear ones first and back and forth, so
// that cheap ones meet them; `load` receives the workers' steps. Returns the units left over.
std::vector<int> DealWholeUnits(const std::vector<double>& cost, int total_steps,
                                std::vector<std::vector<Slice>>* lists, std::vector<double>* load) {
  const int workers = static_cast<int>(lists->size());
  std::vector<int> order(cost.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] > cost[b]; });
  const int dealt = static_cast<int>(order.size()) / workers * workers;
  for (int k = 0; k < dealt; ++k) {
    const int worker = k / workers % 2 == 0 ? k % workers : workers - 1 - k % workers;
    (*lists)[worker].push_back({order[k], 0, total_steps});
    (*load)[worker] += cost[order[k]] * total_steps;
  }
  std::vector<int> left(order.begin() + dealt, order.end());
  std::sort(left.begin(), left.end());
  return left;
}

// Whole units only, each to the worker that is free first.
Plan WholeUnits(const std::vector<double>& cost, int total_steps, int workers) {
  std::vector<Slice> slices;
  for (size_t u = 0; u < cost.size(); ++u) slices.push_back({static_cast<int>(u), 0, total_steps});
  std::stable_sort(slices.begin(), slices.end(),
                   [&](const Slice& a, const Slice& b) { return cost[a.unit] > cost[b.unit]; });
  Plan plan;
  const auto [items, begin] = Deal<Slice>(
      slices, workers, [&](const Slice& s) { return s.steps * cost[s.unit]; }, &plan.steps);
  for (int w = 0; w < workers; ++w) {
    plan.lists.emplace_back(items.begin() + begin[w], items.begin() + begin[w + 1]);
  }
  return plan;
}

// Divides `shared` over tokens among workers that are busy until `load`, so that all are done at
// `level`. A unit's tokens are cut into parts as long as a worker has time, one after the other, so
// that all parts of one number advance together; what remains of the units at the end is shared by
// the workers without a part, each of which takes its slices in the order of their tokens. Nothing
// if they do not fit.
std::optional<Plan> Share(const std::vector<int>& shared, const std::vector<double>& cost,
                          int total_steps, double level, const std::vector<std::vector<Slice>>& own,
                          const std::vector<double>& load) {
  const int workers = static_cast<int>(load.size());
  Plan plan{.lists = own};
  std::vector<int> slots(cost.size(), -1);
  int worker = 0, slot_total = 0;
  std::vector<Slice> rests;
  const auto fits = [&](int w, double used, int u) {
    return static_cast<int>((level - load[w] - used - kFlushSteps) / cost[u] + 1e-9);
  };
  const auto take = [&](int w, const Slice& slice) {
    plan.lists[w].push_back(slice);
    ++slots[slice.unit];
  };
  for (const int u : shared) {
    int reached = 0;
    while (worker < workers) {
      const int steps = fits(worker, 0, u), left = total_steps - reached;
      if (steps < kMinSliceSteps) return std::nullopt;
      if (left < steps - kMinSliceSteps) break;
      take(worker++, {u, reached, std::min(left, steps)});
      reached += std::min(left, steps);
      if (reached == total_steps) break;
    }
    if (reached < total_steps) rests.push_back({u, reached, total_steps - reached});
  }
  const int parts = worker;
  double used = 0;
  for (Slice& rest : rests) {
    while (rest.steps > 0) {
      if (worker == workers) return std::nullopt;
      int steps = std::min(fits(worker, used, rest.unit), rest.steps);
      if (rest.steps - steps < kMinSliceSteps && fits(worker, used - kMinSliceSteps, rest.unit) >= rest.steps) steps = rest.steps;
      if (steps < std::min(kMinSliceSteps, rest.steps)) {
        ++worker;
        used = 0;
        continue;
      }
      take(worker, {rest.unit, rest.begin, steps});
      used += steps * cost[rest.unit] + kFlushSteps;
      rest.begin += steps;
      rest.steps -= steps;
    }
  }
  int most = 0;
  for (const int u : shared) {
    most = std::max(most, slots[u]);
    slot_total += slots[u];
  }
  for (int w = parts; w < workers; ++w) {
    std::stable_sort(plan.lists[w].begin() + static_cast<int>(own[w].size()), plan.lists[w].end(),
                     [](const Slice& a, const Slice& b) { return a.begin < b.begin; });
  }
  // Writers of gradients have the highest numbers: those with a part.
  std::rotate(plan.lists.begin(), plan.lists.begin() + parts, plan.lists.end());
  plan.steps = level + kAddSteps * most + kTrafficSteps * slot_total;
  return plan;
}

Plan ChoosePlan(const std::vector<double>& cost, int total_steps, int workers) {
  Plan best = WholeUnits(cost, total_steps, workers);
  std::vector<std::vector<Slice>> own(workers);
  std::vector<double> load(workers, 0.0);
  const std::vector<int> shared = DealWholeUnits(cost, total_steps, &own, &load);
  if (shared.empty()) return best;
  const double mean = std::accumulate(cost.begin(), cost.end(), 0.0) * total_steps / workers;
  const double end = best.steps;
  double limit = best.steps / kMargin;
  for (double level = std::floor(mean) + kFlushSteps; level < end; ++level) {
    std::optional<Plan> plan = Share(shared, cost, total_steps, level, own, load);
    if (!plan || plan->steps >= limit) continue;
    limit = plan->steps;
    best = *std::move(plan);
  }
  return best;
}

// Numbers the partial sums: of a unit's slices the one of the highest worker writes the gradient,
// the others have slots in the order of their tokens.
void ListSegments(const Plan& plan, SddmmSchedule* schedule) {
  struct Place {
    int begin, worker, segment;
  };
  std::vector<std::vector<Place>> by_unit(schedule->units.size());
  schedule->worker_begin = {0};
  for (int w = 0; w < static_cast<int>(plan.lists.size()); ++w) {
    int steps = 0;
    for (const Slice& slice : plan.lists[w]) {
      by_unit[slice.unit].push_back({slice.begin, w, static_cast<int>(schedule->segments.size())});
      schedule->segments.push_back(
          {slice.unit, slice.begin * kChunk, slice.steps, kTargetGradient});
      steps += slice.steps;
    }
    schedule->worker_begin.push_back(static_cast<int32_t>(schedule->segments.size()));
    schedule->worker_steps = std::max(schedule->worker_steps, steps);
  }
  for (size_t u = 0; u < by_unit.size(); ++u) {
    std::vector<Place>& places = by_unit[u];
    const auto writer = std::max_element(
        places.begin(), places.end(), [](const Place& a, const Place& b) { return a.worker < b.worker; });
    const int writing = writer->segment;
    std::sort(places.begin(), places.end(),
              [](const Place& a, const Place& b) { return a.begin < b.begin; });
    schedule->units[u].slot_begin = schedule->slot_count;
    schedule->units[u].slot_count = static_cast<int32_t>(places.size()) - 1;
    for (const Place& place : places) {
      if (place.segment != writing) schedule->segments[place.segment].target = schedule->slot_count++;
    }
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
  SddmmSchedule schedule;
  SddmmForm units_form = form;
  units_form.column_sums = form.column_sums && pattern.block.rows >= pattern.block.cols && pattern.block_count() > 0;
  schedule.units = MakeSddmmUnits(pattern, units_form);
  schedule.worker_begin.assign(workers + 1, 0);
  if (schedule.units.empty()) return schedule;
  std::vector<double> cost;
  for (const SddmmUnit& unit : schedule.units) cost.push_back(SddmmUnitCost(unit, pattern.block));
  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  ListSegments(ChoosePlan(cost, total_steps, workers), &schedule);
  CHECK_LE(schedule.slot_count, kSddmmMaxSlots);
  if (units_form.column_sums) {
    ListColumnSums(pattern.block_row_count, pattern.block.rows, &schedule);
  }
  return schedule;
}

}  // namespace filigree
