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

// Drops and grows at a constant sparsity.
std::optional<TopologyAction> DropAndGrow(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step);
Status ValidateDropAndGrow(const SparsitySpec& spec, const Timeline& timeline);

extern const TopologyRule kStaticRandomRule, kInheritRule, kOneShotRule, kIterativeMagnitudeRule,
    kGradualMagnitudeRule, kGlobalMagnitudeRule, kJourneyRule, kIdeaPruneRule, kSparseToDenseRule,
    kSetRule, kRiglRule, kGranetRule;

}  // namespace filigree
