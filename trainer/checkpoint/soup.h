// Sparse model soups (Zimmer, Spiegel and Pokutta, ICLR 2024): the average of models that were
// trained on from one pruned parent, with other seeds, data or learning rates, and kept its layout.
// The average is as sparse as they are.
#pragma once

#include <span>
#include <string>

#include "kernels/base/status.h"

namespace filigree {

// Writes the mean of the checkpoints' weights, taken in double precision, as the checkpoint `out`:
// at step 0, without moments or configuration, with the first one's tokenizer (like an imported
// model, to evaluate, to export, or to start a run from). InvalidInput, before anything is written:
// fewer than two checkpoints, models that differ, a weight whose layout differs (which is named),
// low-rank factors (the product of averages is no average), an `out` that is not empty.
Status AverageCheckpoints(std::span<const std::string> checkpoints, const std::string& out);

}  // namespace filigree
