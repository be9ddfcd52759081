// Correctness of the block-sparse kernels against a naive double-precision product on the device.
#pragma once

#include "tests/bench/block_sparse_problem.h"

namespace filigree::bench {

// Runs the list of layouts, shapes and token counts; prints a line per failure and a summary.
// Returns the number of failures.
int CheckBlockSparse(Path path, bool verbose);

}  // namespace filigree::bench
