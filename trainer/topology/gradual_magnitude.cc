// `gradual_magnitude`: Zhu and Gupta 2017. The sparsity rises along a cubic; in each weight the
// stored units of lowest magnitude go and never return.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kGradualMagnitudeRule =
    PruningRule("gradual_magnitude", "cubic schedule, lowest magnitudes of each weight", [] {
      return SparsitySpec{.curve = SparsityCurve::kCubic,
                          .clock = Clock::kFraction,
                          .begin = 0.2,
                          .end = 0.75,
                          .update_interval = 100};
    });

}  // namespace filigree
