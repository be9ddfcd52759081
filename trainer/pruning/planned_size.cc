#include "trainer/pruning/planned_size.h"

#include <cstdint>
#include <vector>

#include "trainer/pruning/compaction.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/ramp.h"

namespace filigree {

ModelSpec PrunedInProportion(const ModelSpec& model, const PruningSpec& pruning) {
  const UnitTable table(model);
  const auto units = static_cast<size_t>(table.unit_count());
  // The lowest score goes first: a unit's place in its set, as a fraction, makes sets shrink alike.
  std::vector<double> scores(units);
  for (const UnitSet& set : table.sets()) {
    for (int64_t i = 0; i < set.count; ++i) {
      scores[static_cast<size_t>(set.first + i)] =
          static_cast<double>(i + 1) / static_cast<double>(set.count);
    }
  }
  PruningSpec at_once = pruning;
  at_once.units_per_event = 0;
  std::vector<bool> removed(units, false);
  for (const int64_t unit : ChooseUnits(model, table, scores, std::vector<bool>(units, true),
                                        at_once, pruning.target_parameters, /*finishing=*/true)) {
    removed[static_cast<size_t>(unit)] = true;
  }
  return PlanCompaction(model, table, removed, pruning).model;
}

}  // namespace filigree
