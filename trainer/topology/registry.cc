#include <array>

#include "trainer/topology/rule_parts.h"

namespace filigree {

std::span<const TopologyRule* const> TopologyRules() {
  static constexpr std::array rows = {&kStaticRandomRule,
                                      &kInheritRule,
                                      &kOneShotRule,
                                      &kIterativeMagnitudeRule,
                                      &kGradualMagnitudeRule,
                                      &kGlobalMagnitudeRule,
                                      &kJourneyRule,
                                      &kIdeaPruneRule,
                                      &kSparseToDenseRule,
                                      &kSetRule,
                                      &kRiglRule,
                                      &kGranetRule};
  return rows;
}

const TopologyRule* FindTopologyRule(std::string_view name) {
  for (const TopologyRule* row : TopologyRules()) {
    if (row->name == name) return row;
  }
  return nullptr;
}

}  // namespace filigree
