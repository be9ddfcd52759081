// `granet`: gradual pruning with zero-cost neuroregeneration (Liu et al. 2021). Every interval (1)
// one magnitude threshold prunes to the cubic schedule, then (2) in each weight a further fraction
// of lowest magnitude goes and as many grow by gradient. The fraction falls along a cosine from 0.5
// to 0.005 over the whole phase; pruning ends after 30 % of it (their ImageNet setting). Starts at
// half density; initial_sparsity 0 is the dense-to-sparse variant.
#include "trainer/topology/rule_parts.h"

namespace filigree {
namespace {

std::optional<TopologyAction> Action(const SparsitySpec& spec, const Timeline& timeline,
                                     int64_t step) {
  const bool regenerates = IsDropEvent(spec, timeline, step);
  if (!regenerates && !IsCurveEvent(spec, timeline, step)) return std::nullopt;
  return TopologyAction{.sparsity = CurveSparsity(spec, timeline, step),
                        .drop_fraction = regenerates ? DropFractionAt(spec, timeline, step) : 0};
}

Status Validate(const SparsitySpec& spec, const Timeline& timeline) {
  RETURN_IF_ERROR(ValidatePruning(spec, timeline));
  return ValidateDropAndGrow(spec, timeline);
}

}  // namespace

const TopologyRule kGranetRule = {
    .name = "granet",
    .summary = "gradual pruning, then drop by magnitude and grow by gradient",
    .growth = Growth::kGradient,
    .defaults =
        [] {
          return SparsitySpec{.distribution = "global",
                              .initial_sparsity = 0.5,
                              .curve = SparsityCurve::kCubic,
                              .clock = Clock::kFraction,
                              .begin = 0,
                              .end = 0.3,
                              .update_interval = 1000,
                              .drop_fraction = 0.5,
                              .final_drop_fraction = 0.005,
                              .drop_curve = DropCurve::kCosine,
                              .drop_end = 1};
        },
    .action = &Action,
    .sparsity = &CurveSparsity,
    .validate = &Validate};

}  // namespace filigree
