// `journey`: "The Journey Matters" (arXiv 2501.12486). One magnitude threshold, every 100 steps
// between 25 % and 75 % of training compute, the same fraction of the survivors at each event,
// under one cosine learning rate. A run should reach the loss of a dense one with as many
// parameters on average (`plan` prints that number).
//
// Differences: their masks are trained parameters (and lie in the clipping norm), and they prune an
// untied head too; here heads are not sparsifiable.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kJourneyRule =
    PruningRule("journey", "geometric schedule on the compute clock, one magnitude threshold", [] {
      return SparsitySpec{.distribution = "global",
                          .curve = SparsityCurve::kGeometric,
                          .clock = Clock::kCompute,
                          .begin = 0.25,
                          .end = 0.75,
                          .update_interval = 100};
    });

}  // namespace filigree
