#include "trainer/pruning/planned_size.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "trainer/pruning/compaction.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/ramp.h"

namespace filigree {
namespace {

// The units that the target costs, in their order, with nothing to slow them down.
std::vector<int64_t> UnitsThatGo(const ModelSpec& model, const UnitTable& table,
                                 PruningSpec pruning, UnitOrder order) {
  const auto units = static_cast<size_t>(table.unit_count());
  // The lowest score goes first: a unit's place in its set, as a fraction, makes sets shrink alike.
  std::vector<double> scores(units);
  for (const UnitSet& set : table.sets()) {
    for (int64_t i = 0; i < set.count; ++i) {
      scores[static_cast<size_t>(set.first + i)] =
          order == UnitOrder::kSmallestFirst
              ? static_cast<double>(set.parameters)
              : static_cast<double>(i + 1) / static_cast<double>(set.count);
    }
  }
  pruning.units_per_event = 0;
  return ChooseUnits(model, table, scores, std::vector<bool>(units, true), pruning,
                     pruning.target_parameters, /*finishing=*/true);
}

// Parameters of the model before the first of `order` goes, after it, ...
std::vector<int64_t> ParametersAlong(const ModelSpec& model, const UnitTable& table,
                                     const std::vector<int64_t>& order) {
  std::vector<int64_t> live, set_of(static_cast<size_t>(table.unit_count()));
  for (const UnitSet& set : table.sets()) {
    std::fill_n(set_of.begin() + set.first, set.count, std::ssize(live));
    live.push_back(set.count);
  }
  std::vector<int64_t> parameters = {CountParameters(model)};
  for (const int64_t unit : order) {
    --live[static_cast<size_t>(set_of[static_cast<size_t>(unit)])];
    parameters.push_back(CountParameters(ModelOf(model, table, live)));
  }
  return parameters;
}

// The steps of a phase after which units may go.
std::vector<int64_t> EventSteps(const Ramp& ramp, int64_t steps) {
  std::vector<int64_t> events;
  for (int64_t step = ramp.EventFrom(0); step <= steps; step += ramp.interval()) {
    events.push_back(step);
  }
  return events;
}

}  // namespace

ModelSpec PrunedInProportion(const ModelSpec& model, const PruningSpec& pruning) {
  const UnitTable table(model);
  std::vector<bool> removed(static_cast<size_t>(table.unit_count()), false);
  for (const int64_t unit : UnitsThatGo(model, table, pruning, UnitOrder::kInProportion)) {
    removed[static_cast<size_t>(unit)] = true;
  }
  return PlanCompaction(model, table, removed, pruning).model;
}

RampReach ReachOf(const ModelSpec& model, const PruningSpec& pruning, const Timeline& timeline,
                  UnitOrder unit_order) {
  const UnitTable table(model);
  const std::vector<int64_t> order = UnitsThatGo(model, table, pruning, unit_order);
  const std::vector<int64_t> parameters = ParametersAlong(model, table, order);
  const Ramp ramp(pruning, timeline, parameters.front());
  const std::vector<int64_t> events = EventSteps(ramp, timeline.steps);
  const bool progressive = pruning.removal == PruningSpec::Removal::kProgressive;
  const auto removed_by = [&](int64_t units_per_event) {
    size_t done = 0;
    for (size_t e = 0; e + 1 < events.size(); ++e) {
      const int64_t allowed = ramp.AllowedAt(events[e] + (progressive ? pruning.shrink_steps : 0));
      const bool finishing = events[e] >= ramp.last_step();
      for (int64_t k = 0; k < units_per_event && done < order.size(); ++k) {
        if (!finishing && parameters[done] <= allowed) break;
        ++done;
      }
    }
    return static_cast<int64_t>(done);
  };
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  RampReach reach = {.units = std::ssize(order), .events = std::ssize(events)};
  reach.removed = removed_by(pruning.units_per_event > 0 ? pruning.units_per_event : kAll);
  reach.parameters = parameters[static_cast<size_t>(reach.removed)];
  if (removed_by(kAll) < reach.units) return reach;
  int64_t too_few = 0, enough = std::max<int64_t>(reach.units, 1);
  while (enough - too_few > 1) {
    const int64_t middle = (too_few + enough) / 2;
    (removed_by(middle) < reach.units ? too_few : enough) = middle;
  }
  reach.units_per_event = enough;
  return reach;
}

}  // namespace filigree
