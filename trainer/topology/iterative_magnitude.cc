// `iterative_magnitude`: one round of iterative magnitude pruning. When the phase begins, survivors
// of lowest |w| go until `sparsity` is reached; the phase's rewind_step then takes the remaining
// weights, moments and learning rate back to where they were after that many steps of the run.
// Frankle and Carbin 2019 prune a fifth of the survivors a round (sparsity 1 - 0.8^round) and
// rewind to step 0; Frankle et al. 2020 to 0.1 to 7 % of training, without which large networks
// fail.
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kIterativeMagnitudeRule = {
    .name = "iterative_magnitude",
    .summary = "a round of lottery-ticket pruning; the phase rewinds",
    .defaults = [] { return SparsitySpec{.distribution = "global", .initial_sparsity = 0}; },
    .action = &PruneAtStart,
    .sparsity = &TargetAlways,
    .validate = &CheckRising};

}  // namespace filigree
