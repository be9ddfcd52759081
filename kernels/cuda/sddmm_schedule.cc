// The schedule of the weight gradient (block_schedule.h): whole units, then shared ones.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/schedule_dealing.h"
#include "kernels/cuda/sddmm_units.h"

namespace filigree {
namespace {

// A token range shorter than this is not worth a partial sum of its own.
constexpr int kMinSliceSteps = 8;
// A unit is cut into no more parts than this.
constexpr int kMaxParts = 8;
// Of a part's steps so many make a part of their own; fewer are a rest.
constexpr double kLeastPart = 0.6;
// What partial sums cost, in steps of a full unit: leaving accumulators and beginning anew; adding
// one to one's own, or the second kernel; and for all, since they pass through the L2.
constexpr double kFlushSteps = 4, kAddSteps = 4, kReductionSteps = 12, kTrafficSteps = 0.07;
// Measured on an H100, with slices of 128: where workers take one rest (Share) after the other, the
// tokens are swept anew, and all wait for device memory: about 40 steps for 6144 x 2048 at 75 %.
constexpr double kRestWaits = 1.3;
// Division must promise this much.
constexpr double kMargin = 1.03;

struct Slice {
  int unit, begin, steps;
};

// What every worker does, in order, and when the last one is done.
struct Plan {
  std::vector<std::vector<Slice>> lists;
  double steps = 0;
  bool reduces = false;  // the partial sums of shared units are added by a second kernel
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

// Divides units over tokens among workers that are busy until `load`, so that all are done at
// `level`.
class Sharing {
 public:
  Sharing(const std::vector<double>& cost, int total_steps, double level,
          const std::vector<std::vector<Slice>>& own, const std::vector<double>& load)
      : cost_(cost),
        total_steps_(total_steps),
        level_(level),
        load_(load),
        workers_(static_cast<int>(load.size())),
        parts_(cost.size(), 0),
        lists_(own) {}

  // A unit's tokens are cut into parts as long as a worker has time, one after the other, so that
  // all parts of one number advance together; what remains of the units at the end is shared by the
  // workers without a part. False if they do not fit.
  bool Share(const std::vector<int>& shared) {
    for (const int u : shared) {
      if (!CutParts(u)) return false;
    }
    parted_workers_ = worker_;
    double used = 0;
    for (const Slice& rest : rests_) {
      if (!ShareRest(rest, &used)) return false;
    }
    return *std::max_element(parts_.begin(), parts_.end()) <= kMaxParts;
  }

  Plan Result(double rest_waits) && {
    const auto by_tokens = [](const Slice& a, const Slice& b) { return a.begin < b.begin; };
    Plan plan;
    plan.reduces = *std::max_element(parts_.begin(), parts_.end()) > 2;
    int slots = 0;
    for (const int parts : parts_) {
      if (parts > 1) slots += plan.reduces ? parts : parts - 1;
    }
    plan.steps = level_ + (plan.reduces ? kReductionSteps : kAddSteps) + kTrafficSteps * slots +
                 rest_waits * later_rest_steps_ / workers_;
    for (int w = parted_workers_; w < workers_; ++w) {
      std::stable_sort(lists_[w].end() - rest_slices_[w], lists_[w].end(), by_tokens);
    }
    // Writers of gradients have the highest numbers: those with a part.
    std::rotate(lists_.begin(), lists_.begin() + parted_workers_, lists_.end());
    plan.lists = std::move(lists_);
    return plan;
  }

 private:
  // Steps of unit u for which a worker has time that has taken `used` beside its load.
  int Fits(int worker, double used, int u) const {
    return static_cast<int>((level_ - load_[worker] - used - kFlushSteps) / cost_[u] + 1e-9);
  }
  void Take(int worker, const Slice& slice) {
    lists_[worker].push_back(slice);
    ++parts_[slice.unit];
  }

  bool CutParts(int u) {
    int reached = 0;
    while (worker_ < workers_ && reached < total_steps_) {
      const int steps = Fits(worker_, 0, u), left = total_steps_ - reached;
      if (steps < kMinSliceSteps) return false;
      if (left < kLeastPart * steps) break;
      Take(worker_++, {u, reached, std::min(left, steps)});
      reached += std::min(left, steps);
    }
    if (reached < total_steps_) rests_.push_back({u, reached, total_steps_ - reached});
    return true;
  }

  bool ShareRest(Slice rest, double* used) {
    while (rest.steps > 0) {
      if (worker_ == workers_) return false;
      int steps = std::min(Fits(worker_, *used, rest.unit), rest.steps);
      // What would be too short a slice for the next worker, this one takes.
      if (rest.steps - steps < kMinSliceSteps &&
          Fits(worker_, *used - kMinSliceSteps, rest.unit) >= rest.steps) {
        steps = rest.steps;
      }
      if (steps < std::min(kMinSliceSteps, rest.steps)) {
        ++worker_;
        *used = 0;
        continue;
      }
      Take(worker_, {rest.unit, rest.begin, steps});
      if (++rest_slices_[worker_] > 1) later_rest_steps_ += steps;
      *used += steps * cost_[rest.unit] + kFlushSteps;
      rest.begin += steps;
      rest.steps -= steps;
    }
    return true;
  }

  const std::vector<double>& cost_;
  const int total_steps_;
  const double level_;
  const std::vector<double>& load_;
  const int workers_;
  std::vector<int> parts_;  // by unit
  std::vector<std::vector<Slice>> lists_;
  std::vector<Slice> rests_;
  std::vector<int> rest_slices_ = std::vector<int>(load_.size(), 0);
  int worker_ = 0, parted_workers_ = 0;
  int later_rest_steps_ = 0;  // of rests that are not their worker's first
};

Plan ChoosePlan(const std::vector<double>& cost, int total_steps, int workers, double rest_waits) {
  Plan best = WholeUnits(cost, total_steps, workers);
  std::vector<std::vector<Slice>> own(workers);
  std::vector<double> load(workers, 0.0);
  const std::vector<int> shared = DealWholeUnits(cost, total_steps, &own, &load);
  if (shared.empty()) return best;
  const double mean = std::accumulate(cost.begin(), cost.end(), 0.0) * total_steps / workers;
  const double end = best.steps;
  double limit = best.steps / kMargin;
  for (double level = std::floor(mean) + kFlushSteps; level < end; ++level) {
    Sharing sharing(cost, total_steps, level, own, load);
    if (!sharing.Share(shared)) continue;
    Plan plan = std::move(sharing).Result(rest_waits);
    if (plan.steps >= limit) continue;
    limit = plan.steps;
    best = std::move(plan);
  }
  return best;
}

// Lists the segments worker by worker; each would write its unit's gradient.
void ListSegments(const Plan& plan, SddmmSchedule* schedule) {
  schedule->worker_begin = {0};
  for (const std::vector<Slice>& list : plan.lists) {
    int steps = 0;
    for (const Slice& slice : list) {
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

}  // namespace

SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers,
                                 const SddmmForm& form) {
  CheckPattern(pattern);
  CHECK(tokens > 0 && tokens < (int64_t{1} << 31) - kChunk);
  SddmmSchedule schedule;
  const bool column_sums =
      form.column_sums && pattern.block.rows >= pattern.block.cols && pattern.block_count() > 0;
  schedule.units = MakeSddmmUnits(pattern, {.column_sums = column_sums});
  schedule.worker_begin.assign(workers + 1, 0);
  if (schedule.units.empty()) return schedule;
  std::vector<double> cost;
  for (const SddmmUnit& unit : schedule.units) cost.push_back(SddmmUnitCost(unit, pattern));
  const int total_steps = static_cast<int>((tokens + kChunk - 1) / kChunk);
  const bool wide = std::max(pattern.block.rows, pattern.block.cols) == 128;
  const Plan plan = ChoosePlan(cost, total_steps, workers, wide ? kRestWaits : 0);
  ListSegments(plan, &schedule);
  NumberPartials(plan.reduces, &schedule);
  CHECK_LE(schedule.slot_count, kSddmmMaxSlots);
  if (column_sums) {
    ListColumnSums(pattern.block_row_count, pattern.block.rows, &schedule);
  }
  return schedule;
}

}  // namespace filigree
