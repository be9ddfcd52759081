// `inherit`: the topology with which the phase before ended, fixed. For a phase that changes data,
// sequence length or learning rate after a phase that pruned.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kInheritRule = {.name = "inherit",
                                   .summary = "the phase before's, fixed",
                                   .defaults = [] { return SparsitySpec{.initial_sparsity = -1}; },
                                   .action = &NoAction,
                                   .sparsity = &TargetAlways,
                                   .validate = &AcceptStatic};

}  // namespace filigree
