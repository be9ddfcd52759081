// `global_magnitude`: Global MP with minimum threshold (Gupta et al. 2022). One magnitude threshold
// over all weights, each of which keeps at least 0.05 % of the total count (min_share), or stays
// dense where it is smaller. Where the paper scales the other layers' ratios to make up for the
// floor, here the common threshold rises: the total is exact, and no ratio has to be iterated.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kGlobalMagnitudeRule =
    PruningRule("global_magnitude", "one magnitude threshold over all weights, with a floor", [] {
      return SparsitySpec{.distribution = "global",
                          .curve = SparsityCurve::kCubic,
                          .clock = Clock::kFraction,
                          .begin = 0.2,
                          .end = 0.75,
                          .update_interval = 100,
                          .min_share = 0.0005};
    });

}  // namespace filigree
