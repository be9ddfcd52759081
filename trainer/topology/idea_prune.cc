// `idea_prune`: enlarge, prune, recover under one cosine learning rate, after IDEA Prune (arXiv
// 2503.05920): start from a model larger than wanted, prune it iteratively by first-order Taylor
// scores, train on. The paper's interval and window are not public in its abstract; the defaults
// are a linear schedule over the second quarter of training.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kIdeaPruneRule =
    PruningRule("idea_prune", "linear schedule, Taylor scores, one cosine", [] {
      return SparsitySpec{.distribution = "global",
                          .criterion = "taylor",
                          .curve = SparsityCurve::kLinear,
                          .clock = Clock::kFraction,
                          .begin = 0.25,
                          .end = 0.5,
                          .update_interval = 100};
    });

}  // namespace filigree
