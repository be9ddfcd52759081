// `sparse_to_dense`: the sparsity falls along a curve and units are grown at random, starting at
// zero. A dense tail in steps; a tail at once is a dense phase (variable SPDF).
#include "trainer/topology/rule_parts.h"

namespace filigree {
namespace {

Status Validate(const SparsitySpec& spec, const Timeline& timeline) {
  RETURN_IF_ERROR(CheckTimes(spec, timeline));
  if (spec.initial_sparsity < spec.sparsity) {
    return InvalidInput(
        "initial_sparsity is below sparsity, and rule sparse_to_dense only grows; swap them");
  }
  if (spec.distribution != "global") return OkStatus();
  return InvalidInput(
      "distribution = global ranks stored weights; a rule that grows towards a "
      "target needs uniform, er or erk");
}

}  // namespace

const TopologyRule kSparseToDenseRule = {.name = "sparse_to_dense",
                                         .summary = "grown at random along a falling curve",
                                         .growth = Growth::kRandom,
                                         .defaults =
                                             [] {
                                               return SparsitySpec{.initial_sparsity = 0.75,
                                                                   .curve = SparsityCurve::kLinear,
                                                                   .clock = Clock::kFraction,
                                                                   .begin = 0.5,
                                                                   .end = 0.75,
                                                                   .update_interval = 100};
                                             },
                                         .action = &FollowCurve,
                                         .sparsity = &CurveSparsity,
                                         .validate = &Validate};

}  // namespace filigree
