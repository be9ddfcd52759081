// `rigl`: Evci et al. 2020. As `set`, but the units of largest dense gradient grow: that of the
// step just done, accumulated over its micro-batches and summed over ranks. Where the paper
// replaces the weight update of that step by the topology's, both happen here, the topology's
// second.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kRiglRule = {.name = "rigl",
                                .summary = "drop by magnitude, grow by gradient",
                                .growth = Growth::kGradient,
                                .defaults =
                                    [] {
                                      return SparsitySpec{.initial_sparsity = -1,
                                                          .update_interval = 100,
                                                          .drop_fraction = 0.3,
                                                          .drop_curve = DropCurve::kCosine,
                                                          .drop_end = 0.75};
                                    },
                                .action = &DropAndGrow,
                                .sparsity = &TargetAlways,
                                .validate = &ValidateDropAndGrow};

}  // namespace filigree
