// What the rules share: policies of pruning along a curve and of dropping and growing, and the rows
// themselves, one file each.
#pragma once

#include "trainer/topology/rule.h"

namespace filigree {

// Nothing after the phase's start; the sparsity stays the target.
std::optional<TopologyAction> NoAction(const SparsitySpec&, const Timeline&, int64_t step);
double TargetAlways(const SparsitySpec& spec, const Timeline&, int64_t step);
Status AcceptStatic(const SparsitySpec& spec, const Timeline&);

// Prunes to the target once, at the phase's start.
std::optional<TopologyAction> PruneAtStart(const SparsitySpec& spec, const Timeline&, int64_t step);

// Follows the curve, and nothing else.
std::optional<TopologyAction> FollowCurve(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step);
// Times in order and inside the phase, and at least one event.
Status CheckTimes(const SparsitySpec& spec, const Timeline& timeline);
// Sparsities that never fall; for ValidatePruning also the times.
Status CheckRising(const SparsitySpec& spec, const Timeline& timeline);
Status ValidatePruning(const SparsitySpec& spec, const Timeline& timeline);
// The row of a rule that prunes along its curve and does nothing else.
constexpr TopologyRule PruningRule(std::string_view name, std::string_view summary,
                                   SparsitySpec (*defaults)()) {
  return {.name = name,
          .summary = summary,
          .defaults = defaults,
          .action = &FollowCurve,
          .sparsity = &CurveSparsity,
          .validate = &ValidatePruning};
}

// Drops and grows at a constant sparsity.
std::optional<TopologyAction> DropAndGrow(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step);
Status ValidateDropAndGrow(const SparsitySpec& spec, const Timeline& timeline);
// The row of a rule that does that, with RigL's defaults: 0.3 along a cosine to 75 % of the steps.
SparsitySpec DropAndGrowDefaults();
constexpr TopologyRule DropAndGrowRule(std::string_view name, std::string_view summary,
                                       Growth growth) {
  return {.name = name,
          .summary = summary,
          .growth = growth,
          .defaults = &DropAndGrowDefaults,
          .action = &DropAndGrow,
          .sparsity = &TargetAlways,
          .validate = &ValidateDropAndGrow};
}

extern const TopologyRule kStaticRandomRule, kInheritRule, kOneShotRule, kIterativeMagnitudeRule,
    kGradualMagnitudeRule, kGlobalMagnitudeRule, kJourneyRule, kIdeaPruneRule, kSparseToDenseRule,
    kSetRule, kRiglRule, kGranetRule;

}  // namespace filigree
