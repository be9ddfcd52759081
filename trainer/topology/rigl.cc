// `rigl`: Evci et al. 2020. As `set`, but the units of largest dense gradient grow: that of the
// step just done, accumulated over its micro-batches and summed over ranks. Where the paper
// replaces the weight update of that step by the topology's, both happen here, the topology's
// second.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kRiglRule =
    DropAndGrowRule("rigl", "drop by magnitude, grow by gradient", Growth::kGradient);

}  // namespace filigree
