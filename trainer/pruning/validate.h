// What a configuration may not ask of pruning: floors, sizes that do not come out, what cannot be
// pruned. Each phase is held against what the phases before it leave. As long as scores are still
// to decide that, it is known between bounds (size_bounds.h): a configuration is refused for what
// no scores could mend, and, once the sizes are known, for the rest.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "trainer/pruning/progress.h"
#include "trainer/spec.h"

namespace filigree {

// Before a run: what is wrong with its pruning, one problem a line, each naming phase, field and
// mend, or OK.
Status ValidatePruning(const RunSpec& run);

// Within a run, before phase `first` begins or goes on: the same of its sizes and those of the
// phases after it, where `run.model` is the model as it is now and `progress` what a checkpoint has
// of it.
Status ValidateSizesFrom(const RunSpec& run, int first,
                         const std::optional<PruningProgress>& progress);

}  // namespace filigree
