// `one_shot`: pruned to the target by a criterion when the phase begins, then fixed. At the start
// of a run with criterion snip (Lee et al. 2019) or grasp (Wang et al. 2020) that is pruning at
// initialisation, scored on the first step's batch; in a later phase it is ordinary one-shot
// pruning.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kOneShotRule = {
    .name = "one_shot",
    .summary = "pruned by a criterion at the phase's start, then fixed",
    .defaults = [] { return SparsitySpec{.distribution = "global", .initial_sparsity = 0}; },
    .action = &PruneAtStart,
    .sparsity = &TargetAlways,
    .validate = &CheckRising};

}  // namespace filigree
