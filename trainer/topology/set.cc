// `set`: sparse evolutionary training (Mocanu et al. 2018). Every 100 steps a fraction of the
// stored units of lowest magnitude goes in each weight, and as many grow at random among the dead.
// Under Adam and language models 0.1 to 0.2 is a calmer drop fraction than the vision default 0.3.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kSetRule =
    DropAndGrowRule("set", "drop by magnitude, grow at random", Growth::kRandom);

}  // namespace filigree
