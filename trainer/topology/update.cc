#include "trainer/topology/update.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "trainer/topology/selection.h"
#include "trainer/topology/units.h"

namespace filigree {
namespace {

using Marks = std::vector<uint8_t>;

// What a selection within one event is for; part of its tie-break.
enum Purpose : uint64_t { kPrune, kFloor, kFill, kDrop, kRegrow, kPurposes };

class TopologyEvent {
 public:
  TopologyEvent(std::span<const TopologyWeight> weights, const SparsitySpec& spec, uint64_t seed,
                int64_t step)
      : weights_(weights), spec_(spec), seed_(seed), step_(static_cast<uint64_t>(step)) {
    for (const TopologyWeight& weight : weights) {
      live_.push_back(LiveUnits(weight.layout));
      shapes_.push_back(weight.shape);
    }
  }

  void ReachSparsity(double sparsity, Growth growth) {
    const Distribution* row = FindDistribution(spec_.distribution);
    CHECK(row != nullptr) << spec_.distribution;
    if (!row->counts) return PruneGlobally(sparsity);
    const std::vector<int64_t> counts = row->counts(shapes_, sparsity);
    for (size_t i = 0; i < weights_.size(); ++i) {
      const int64_t stored = Count(live_[i]);
      if (counts[i] < stored) live_[i] = Keep(i, live_[i], counts[i], kPrune);
      if (counts[i] > stored && growth != Growth::kNone) {
        Add(Grow(i, Dead(i), counts[i] - stored, kFill), &live_[i]);
      }
    }
  }

  // Those that the pruning above removed may grow again, those that this drops may not.
  void DropAndGrow(double fraction) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      const Marks dead = Dead(i);
      const int64_t stored = Count(live_[i]);
      const int64_t wanted = std::llround(fraction * static_cast<double>(stored));
      const int64_t moved = std::min(wanted, Count(dead));
      if (moved == 0) continue;
      live_[i] = Keep(i, live_[i], stored - moved, kDrop);
      Add(Grow(i, dead, moved, kRegrow), &live_[i]);
    }
  }

  const std::vector<Marks>& live() const { return live_; }

 private:
  static int64_t Count(const Marks& marks) { return std::count(marks.begin(), marks.end(), 1); }
  static void Add(const Marks& more, Marks* marks) {
    std::transform(more.begin(), more.end(), marks->begin(), marks->begin(), std::bit_or());
  }
  Marks Dead(size_t i) const {
    Marks dead(live_[i].size());
    std::transform(live_[i].begin(), live_[i].end(), dead.begin(),
                   [](uint8_t live) -> uint8_t { return live ^ 1; });
    return dead;
  }
  uint64_t Draw(Purpose purpose) const { return step_ * kPurposes + purpose; }

  Marks Keep(size_t i, const Marks& from, int64_t count, Purpose purpose) const {
    const Pool pool = {weights_[i].name, weights_[i].keep_scores, &from};
    return SelectHighest({&pool, 1}, count, seed_, Draw(purpose)).front();
  }

  Marks Grow(size_t i, const Marks& dead, int64_t count, Purpose purpose) const {
    std::vector<float> equal;
    std::span<const float> scores = weights_[i].grow_scores;
    if (scores.empty()) {
      equal.assign(dead.size(), 0.0f);
      scores = equal;
    }
    const Pool pool = {weights_[i].name, scores, &dead};
    return SelectHighest({&pool, 1}, count, seed_, Draw(purpose)).front();
  }

  // Each weight's floor first, by its own best; the rest by one threshold over all.
  void PruneGlobally(double sparsity) {
    int64_t total = 0, stored = 0, reserved = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      total += shapes_[i].units;
      stored += Count(live_[i]);
    }
    const int64_t target = std::llround((1 - sparsity) * static_cast<double>(total));
    if (target >= stored) return;
    const std::vector<int64_t> floors = GlobalFloors(shapes_, spec_);
    std::vector<Marks> kept, rest;
    std::vector<Pool> pools;
    for (size_t i = 0; i < weights_.size(); ++i) {
      kept.push_back(Keep(i, live_[i], floors[i], kFloor));
      reserved += Count(kept[i]);
      rest.push_back(live_[i]);
      for (size_t unit = 0; unit < rest[i].size(); ++unit) rest[i][unit] &= !kept[i][unit];
    }
    for (size_t i = 0; i < weights_.size(); ++i) {
      pools.push_back({weights_[i].name, weights_[i].keep_scores, &rest[i]});
    }
    const auto chosen = SelectHighest(pools, target - reserved, seed_, Draw(kPrune));
    for (size_t i = 0; i < weights_.size(); ++i) Add(chosen[i], &kept[i]);
    live_ = std::move(kept);
  }

  std::span<const TopologyWeight> weights_;
  const SparsitySpec& spec_;
  uint64_t seed_, step_;
  std::vector<WeightShape> shapes_;
  std::vector<Marks> live_;
};

}  // namespace

std::vector<SparseLayout> ProposeLayouts(std::span<const TopologyWeight> weights,
                                         const SparsitySpec& spec, const TopologyAction& action,
                                         Growth growth, uint64_t seed, int64_t step) {
  TopologyEvent event(weights, spec, seed, step);
  event.ReachSparsity(action.sparsity, growth);
  if (action.drop_fraction > 0) event.DropAndGrow(action.drop_fraction);
  std::vector<SparseLayout> layouts;
  for (size_t i = 0; i < weights.size(); ++i) {
    SparseLayout proposed = WithUnits(weights[i].layout, event.live()[i]);
    layouts.push_back(proposed == weights[i].layout ? weights[i].layout : std::move(proposed));
  }
  return layouts;
}

TopologyChange CountChange(const SparseLayout& before, const SparseLayout& after) {
  if (before == after) return {};
  TopologyChange change;
  int64_t kept = 0;
  const std::vector<int64_t> slots = IndexRemap(before, after);
  for (int64_t slot : slots) kept += slot >= 0;
  // IndexRemap gives padding no predecessor, so that `kept` counts cells inside the weight.
  change.dropped = before.nonzero_count() - kept;
  change.grown = after.nonzero_count() - kept;
  return change;
}

}  // namespace filigree
