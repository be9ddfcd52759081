// `gradual_magnitude`: Zhu and Gupta 2017. The sparsity rises along a cubic; in each weight the
// stored units of lowest magnitude go and never return.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kGradualMagnitudeRule = {
    .name = "gradual_magnitude",
    .summary = "cubic schedule, lowest magnitudes of each weight",
    .defaults =
        [] {
          return SparsitySpec{.curve = SparsityCurve::kCubic,
                              .clock = Clock::kFraction,
                              .begin = 0.2,
                              .end = 0.75,
                              .update_interval = 100};
        },
    .action = &FollowCurve,
    .sparsity = &CurveSparsity,
    .validate = &ValidatePruning};

}  // namespace filigree
