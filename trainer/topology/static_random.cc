// `static_random`: drawn at random at the phase's start, then fixed (SPDF, arXiv 2303.10464; random
// pruning with distribution er or erk, Liu et al. 2022).
#include "trainer/topology/rule_parts.h"

namespace filigree {

const TopologyRule kStaticRandomRule = {
    .name = "static_random",
    .summary = "drawn at random, then fixed",
    .entry = PhaseEntry::kDraw,
    .defaults = [] { return SparsitySpec{.initial_sparsity = -1}; },
    .action = &NoAction,
    .sparsity = &TargetAlways,
    .validate = &AcceptStatic};

}  // namespace filigree
