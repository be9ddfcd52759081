#include "trainer/micro_batches.h"

#include <algorithm>

#include "kernels/base/math.h"

namespace filigree {

RunSpec WithMicroBatchesOf(int ranks, RunSpec run) {
  if (run.evaluation.formula == LossFormula::kSltrain) return run;
  for (PhaseSpec& phase : run.phases) {
    BatchSpec& batch = phase.batch;
    const int64_t most = CeilDiv(batch.sequences_per_step(), int64_t{ranks});
    batch.micro_batch_sequences = std::min(batch.micro_batch_sequences, most);
  }
  return run;
}

}  // namespace filigree
