// Micro-batches as the ranks of a run have them.
#pragma once

#include "trainer/spec.h"

namespace filigree {

// The run with no more sequences a micro-batch than the rank with most of a step has: what ranks
// reserve memory for, train and evaluate with. Where the evaluation's formula averages over batches
// (LossFormula::kSltrain) they stay as they were configured.
RunSpec WithMicroBatchesOf(int ranks, RunSpec run);

}  // namespace filigree
