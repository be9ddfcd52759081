#include "trainer/pruning/size_bounds.h"

#include <algorithm>
#include <limits>

#include "kernels/base/math.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"

namespace filigree {
namespace {

int64_t Aligned(int64_t count, const PruningSpec::Kind& kind) {
  return count / kind.alignment * kind.alignment;
}

class Outcome {
 public:
  Outcome(const SizeBounds& before, const PhaseSpec& phase)
      : before_(before), pruning_(*phase.pruning), table_(before.model), after_(before) {
    after_.known = false;
    const Timeline timeline = {.steps = phase.steps,
                               .tokens_per_step = phase.batch.tokens_per_step};
    reached_ =
        pruning_.units_per_event == 0 || ReachOf(ModelOf(before.model, table_, before.most),
                                                 pruning_, timeline, UnitOrder::kSmallestFirst)
                                             .reached();
  }

  SizeBounds Bounds() {
    for (size_t i = 0; i < after_.least.size(); ++i) after_.least[i] = Least(i);
    if (!reached_) return after_;
    const std::vector<int64_t> least = after_.least;
    for (size_t i = 0; i < after_.most.size(); ++i) after_.most[i] = Most(i, least);
    after_.parameters = std::min(before_.parameters, pruning_.target_parameters);
    return after_;
  }

 private:
  const PruningSpec::Kind& kind(size_t set) const { return pruning_.of(table_.sets()[set].kind); }
  // Whether two sets come down together.
  bool Joined(size_t a, size_t b) const {
    const bool same = table_.sets()[a].kind == table_.sets()[b].kind;
    return a == b || (pruning_.even_layers && same);
  }
  bool Fits(const std::vector<int64_t>& counts) const {
    return CountParameters(ModelOf(before_.model, table_, counts)) <= pruning_.target_parameters;
  }

  // Whether sets that come down together may begin with different sizes.
  bool MayDiffer(size_t set) const {
    for (size_t i = 0; i < before_.least.size(); ++i) {
      if (!Joined(set, i)) continue;
      if (before_.least[i] != before_.most[set] || before_.most[i] != before_.least[set]) {
        return true;
      }
    }
    return false;
  }

  // A set goes below an aligned size only while the model with that size, and with all that there
  // ever was of the rest, is too large; or to be even with a smaller one of its kind, at
  // an aligned size.
  int64_t Least(size_t set) const {
    if (!kind(set).enabled) return before_.least[set];
    const auto fits = [&](int64_t level) {
      std::vector<int64_t> counts = before_.most;
      for (size_t i = 0; i < counts.size(); ++i) {
        if (Joined(set, i)) counts[i] = std::min(counts[i], level);
      }
      return Fits(counts);
    };
    int64_t level = std::numeric_limits<int64_t>::max();
    if (!fits(level)) {
      int64_t fitting = 0,
              larger = CeilDiv(before_.most[set], kind(set).alignment);  // aligned sizes
      while (larger - fitting > 1) {
        const int64_t middle = (fitting + larger) / 2;
        (fits(middle * kind(set).alignment) ? fitting : larger) = middle;
      }
      level = fitting * kind(set).alignment;
    }
    if (MayDiffer(set)) {
      for (size_t i = 0; i < before_.least.size(); ++i) {
        if (Joined(set, i)) level = std::min(level, Aligned(before_.least[i], kind(set)));
      }
    }
    const int64_t floor = AlignUp(kind(set).minimum, kind(set).alignment);
    return std::min(before_.least[set], std::max(floor, level));
  }

  // A set keeps at most what the target leaves room for where the rest is at its `least`.
  int64_t Most(size_t set, const std::vector<int64_t>& least) const {
    if (!kind(set).enabled) return before_.most[set];
    const auto fits = [&](int64_t count) {
      std::vector<int64_t> counts = least;
      for (size_t i = 0; i < counts.size(); ++i) {
        if (Joined(set, i)) counts[i] = std::min(count, before_.least[i]);
      }
      counts[set] = count;
      return Fits(counts);
    };
    if (fits(before_.most[set])) return before_.most[set];
    int64_t fitting = least[set], larger = before_.most[set];
    while (larger - fitting > 1) {
      const int64_t middle = (fitting + larger) / 2;
      (fits(middle) ? fitting : larger) = middle;
    }
    // What has lost units has an aligned size.
    if (fitting >= before_.least[set]) return fitting;
    return std::max(least[set], Aligned(fitting, kind(set)));
  }

  const SizeBounds& before_;
  const PruningSpec& pruning_;
  const UnitTable table_;
  SizeBounds after_;
  bool reached_ = false;
};

}  // namespace

SizeBounds KnownSizes(const ModelSpec& model, std::span<const int64_t> live) {
  const UnitTable table(model);
  SizeBounds sizes = {.model = model,
                      .least = {live.begin(), live.end()},
                      .most = {},
                      .parameters = CountParameters(ModelOf(model, table, live))};
  for (const UnitSet& set : table.sets()) sizes.most.push_back(set.count);
  return sizes;
}

SizeBounds KnownSizes(const ModelSpec& model) {
  std::vector<int64_t> live;
  const UnitTable table(model);
  for (const UnitSet& set : table.sets()) live.push_back(set.count);
  return KnownSizes(model, live);
}

SizeBounds BoundsAfter(const SizeBounds& before, const PhaseSpec& phase) {
  return Outcome(before, phase).Bounds();
}

int64_t FloorParameters(const SizeBounds& bounds, const PruningSpec& pruning) {
  const UnitTable table(bounds.model);
  std::vector<int64_t> counts = bounds.least;
  for (size_t i = 0; i < counts.size(); ++i) {
    const PruningSpec::Kind& kind = pruning.of(table.sets()[i].kind);
    if (kind.enabled) counts[i] = std::min(bounds.most[i], AlignUp(kind.minimum, kind.alignment));
  }
  return CountParameters(ModelOf(bounds.model, table, counts));
}

}  // namespace filigree
