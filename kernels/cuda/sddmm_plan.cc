// Three ways to divide units, of which the estimate chooses:
//   whole units, each to the worker that is free first;
//   whole units as many to every worker, and those left over in equal parts, all parts of one
//   number at the same tokens;
//   the same, but in parts of a length that leaves no worker idle, and what such parts leave of the
//   units ("rests") to spare workers one after the other, who sweep tokens anew.
// The estimate is linear in the steps of the longest worker, the bytes from device memory
// (sddmm_reads.h) and the partial sums. Fitted to 186 plans of 48 layouts on one H100, it misses
// times by 8 % with slices of 128 and 5 % with slices of 64 (root mean square), and takes a plan
// more than 1.5 % slower than the best of those measured for six of the layouts.
#include "kernels/cuda/sddmm_plan.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/cuda/schedule_dealing.h"
#include "kernels/cuda/sddmm_reads.h"

namespace filigree {
namespace {

using Slice = SddmmSlice;
using Plan = SddmmPlan;

// A token range shorter than this is not worth a partial sum of its own.
constexpr int kMinSliceSteps = 8;
// A unit is cut into no more parts than this.
constexpr int kMaxParts = 8;
// Of a part's steps so many make a part of their own; fewer are a rest.
constexpr double kLeastPart = 0.6;
// What beginning another rest costs, in steps.
constexpr int kFlushSteps = 4;
// To compare lengths of parts by: rests beyond a worker's first cost more than their steps.
constexpr double kRestWaits = 1.3;
// Steps that a slice stays in the L2: 12 MB of 1 MB a step, for operands 8,192 wide together.
constexpr int kKeptSteps = 12;

// Microseconds, with slices of 128 and of 64; where workers take rests they are out of step, which
// those of 64 pay for (IsPaced in sddmm_schedule.cc).
struct Rates {
  double step, step_beside_rests, gigabyte, slot;
};
constexpr Rates kWide = {0.42, 0.42, 210, 0.087}, kNarrow = {0.64, 0.74, 244, 0.124};

void Estimate(const std::vector<SddmmUnit>& units, int a_chunks, Plan* plan) {
  const Rates& rates = a_chunks == 2 ? kWide : kNarrow;
  plan->steps = 0;
  for (const std::vector<Slice>& list : plan->lists) {
    int steps = 0;
    for (const Slice& slice : list) steps += slice.steps;
    plan->steps = std::max(plan->steps, steps);
  }
  const auto bytes = static_cast<double>(SddmmReadBytes(*plan, units, a_chunks, kKeptSteps));
  plan->microseconds = (plan->rests ? rates.step_beside_rests : rates.step) * plan->steps +
                       rates.gigabyte * bytes * 1e-9 + rates.slot * plan->slots;
}

// Bytes that a step takes, in boxes of 64 x 64.
int Width(const SddmmUnit& unit, int a_chunks) {
  return a_chunks + unit.chunk_count[0] + unit.chunk_count[1];
}

// The units by the bytes that they take, most first.
std::vector<int> DearestFirst(const std::vector<SddmmUnit>& units) {
  std::vector<int> order(units.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return Width(units[a], 0) > Width(units[b], 0); });
  return order;
}

Plan WholeUnits(const std::vector<SddmmUnit>& units, int a_chunks, int total_steps, int workers) {
  std::vector<Slice> slices;
  for (const int unit : DearestFirst(units)) slices.push_back({unit, 0, total_steps});
  const auto [items, begin] =
      Deal<Slice>(slices, workers, [&](const Slice& s) { return Width(units[s.unit], a_chunks); });
  Plan plan;
  for (int w = 0; w < workers; ++w) {
    plan.lists.emplace_back(items.begin() + begin[w], items.begin() + begin[w + 1]);
  }
  plan.whole = true;
  return plan;
}

// As many whole units to every worker as there are for all, dear ones first and back and forth, so
// that cheap ones meet them. Returns the units left over.
std::vector<int> DealWholeUnits(const std::vector<SddmmUnit>& units, int total_steps, int workers,
                                std::vector<std::vector<Slice>>* lists) {
  lists->resize(workers);
  const std::vector<int> order = DearestFirst(units);
  const int dealt = static_cast<int>(order.size()) / workers * workers;
  for (int k = 0; k < dealt; ++k) {
    const int worker = k / workers % 2 == 0 ? k % workers : workers - 1 - k % workers;
    (*lists)[worker].push_back({order[k], 0, total_steps});
  }
  std::vector<int> left(order.begin() + dealt, order.end());
  std::sort(left.begin(), left.end());
  return left;
}

// Workers of one part are neighbours. Measured on an H100, 2048 x 2048 at 75 % in four parts: 71 us
// against 84 where neighbours have the parts of one unit.
std::optional<Plan> EqualParts(const std::vector<SddmmUnit>& units, int total_steps, int workers) {
  Plan plan;
  const std::vector<int> left = DealWholeUnits(units, total_steps, workers, &plan.lists);
  if (left.empty()) return std::nullopt;
  const int count = static_cast<int>(left.size());
  const int parts = std::min({workers / count, kMaxParts, total_steps / kMinSliceSteps});
  if (parts < 2) return std::nullopt;
  int worker = workers - parts * count;  // those before have the dearest units
  for (int k = 0; k < parts; ++k) {
    const int begin = total_steps * k / parts, end = total_steps * (k + 1) / parts;
    for (const int unit : left) plan.lists[worker++].push_back({unit, begin, end - begin});
  }
  plan.reduces = parts > 2;
  plan.slots = count * (plan.reduces ? parts : parts - 1);
  plan.whole = left.size() < units.size();
  return plan;
}

// Divides units among workers that have as many whole units each.
class Sharing {
 public:
  Sharing(int unit_count, int total_steps, int part_steps,
          const std::vector<std::vector<Slice>>& own)
      : total_steps_(total_steps),
        part_steps_(part_steps),
        workers_(static_cast<int>(own.size())),
        parts_(unit_count, 0),
        lists_(own) {}

  // A unit's tokens are cut into parts, one after the other, so that all parts of one number
  // advance together; what remains of the units at the end is shared by the workers without a part.
  // False if they do not fit.
  bool Share(const std::vector<int>& shared) {
    for (const int unit : shared) CutParts(unit);
    parted_workers_ = worker_;
    int used = 0;
    for (const Slice& rest : rests_) {
      if (!ShareRest(rest, &used)) return false;
    }
    return *std::max_element(parts_.begin(), parts_.end()) <= kMaxParts;
  }

  // In steps, to compare lengths of parts by.
  double cost() const { return part_steps_ + kRestWaits * later_rest_steps_ / workers_; }

  Plan Result() && {
    const auto by_tokens = [](const Slice& a, const Slice& b) { return a.begin < b.begin; };
    Plan plan;
    plan.reduces = *std::max_element(parts_.begin(), parts_.end()) > 2;
    for (const int parts : parts_) {
      if (parts > 1) plan.slots += plan.reduces ? parts : parts - 1;
    }
    plan.rests = !rests_.empty();
    plan.whole = !lists_[0].empty() && lists_[0][0].steps == total_steps_;
    for (int w = parted_workers_; w < workers_; ++w) {
      std::stable_sort(lists_[w].end() - rest_slices_[w], lists_[w].end(), by_tokens);
    }
    // Writers of gradients have the highest numbers: those with a part. Neighbours are at the same
    // tokens.
    std::rotate(lists_.begin(), lists_.begin() + parted_workers_, lists_.end());
    std::stable_sort(lists_.end() - parted_workers_, lists_.end(),
                     [&](const auto& a, const auto& b) { return by_tokens(a.back(), b.back()); });
    plan.lists = std::move(lists_);
    return plan;
  }

 private:
  void Take(int worker, const Slice& slice) {
    lists_[worker].push_back(slice);
    ++parts_[slice.unit];
  }

  void CutParts(int unit) {
    int reached = 0;
    while (worker_ < workers_ && reached < total_steps_) {
      const int left = total_steps_ - reached;
      if (left < kLeastPart * part_steps_) break;
      Take(worker_++, {unit, reached, std::min(left, part_steps_)});
      reached += std::min(left, part_steps_);
    }
    if (reached < total_steps_) rests_.push_back({unit, reached, total_steps_ - reached});
  }

  bool ShareRest(Slice rest, int* used) {
    while (rest.steps > 0) {
      if (worker_ == workers_) return false;
      int steps = std::min(part_steps_ - *used, rest.steps);
      // What would be too short a slice for the next worker, this one takes.
      if (rest.steps - steps < kMinSliceSteps &&
          part_steps_ - *used + kMinSliceSteps >= rest.steps) {
        steps = rest.steps;
      }
      if (steps < std::min(kMinSliceSteps, rest.steps)) {
        ++worker_;
        *used = 0;
        continue;
      }
      Take(worker_, {rest.unit, rest.begin, steps});
      if (++rest_slices_[worker_] > 1) later_rest_steps_ += steps;
      *used += steps + kFlushSteps;
      rest.begin += steps;
      rest.steps -= steps;
    }
    return true;
  }

  const int total_steps_, part_steps_, workers_;
  std::vector<int> parts_;  // by unit
  std::vector<std::vector<Slice>> lists_;
  std::vector<Slice> rests_;
  std::vector<int> rest_slices_ = std::vector<int>(lists_.size(), 0);
  int worker_ = 0, parted_workers_ = 0;
  int later_rest_steps_ = 0;  // of rests that are not their worker's first
};

std::optional<Plan> PartsAndRests(const std::vector<SddmmUnit>& units, int total_steps,
                                  int workers) {
  std::vector<std::vector<Slice>> own;
  const std::vector<int> left = DealWholeUnits(units, total_steps, workers, &own);
  if (left.empty()) return std::nullopt;
  const auto unit_count = static_cast<int>(units.size());
  const int mean = static_cast<int>(int64_t{total_steps} * left.size() / workers);
  std::optional<Sharing> best;
  for (int steps = std::max(mean, kMinSliceSteps); steps < total_steps; ++steps) {
    if (best && steps >= best->cost()) break;
    Sharing sharing(unit_count, total_steps, steps, own);
    if (!sharing.Share(left)) continue;
    if (!best || sharing.cost() < best->cost()) best.emplace(std::move(sharing));
  }
  if (!best) return std::nullopt;
  return std::move(*best).Result();
}

}  // namespace

SddmmPlan ChooseSddmmPlan(const std::vector<SddmmUnit>& units, int a_chunks, int total_steps,
                          int workers) {
  Plan best = WholeUnits(units, a_chunks, total_steps, workers);
  Estimate(units, a_chunks, &best);
  for (std::optional<Plan> plan :
       {EqualParts(units, total_steps, workers), PartsAndRests(units, total_steps, workers)}) {
    if (!plan) continue;
    Estimate(units, a_chunks, &*plan);
    if (plan->microseconds < best.microseconds) best = std::move(*plan);
  }
  return best;
}

}  // namespace filigree
