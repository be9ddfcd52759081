// What a run will cost, before it starts: `filigree plan`.
//
// Everything is counted from the layouts that the run will draw, by the same code that the run
// uses.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "comm/gradient_exchange.h"
#include "kernels/backend.h"
#include "trainer/linear/linear.h"
#include "trainer/spec.h"

namespace filigree {

struct PhasePlan {
  std::string name;
  int64_t steps = 0, tokens = 0;
  int64_t parameters_logical = 0;  // of the dense model
  int64_t parameters_stored = 0;   // trained values; neither edge nor vocabulary padding
  double sparsity = 0;             // over the sparsifiable weights
  LinearFlops flops;               // of the whole phase: forward and backward, three kinds
  ExchangedBytes exchanged;        // of one step
  // One rank's bytes by kind: values grads master moments layouts compute_copies activations
  // scratch.
  std::map<std::string, int64_t> memory_bytes;
  int64_t memory_total() const;
};

struct RunPlan {
  std::vector<PhasePlan> phases;
  int64_t tokens() const;
  LinearFlops flops() const;
  // Stored parameters averaged over training tokens: the size of the dense model that "Journey
  // Matters" (arXiv 2501.12486) predicts to reach the same loss.
  double average_parameters() const;
  // The same over the sparsifiable weights, as a fraction of them.
  double average_density() const;
  // The phase that needs the most memory.
  const PhasePlan& largest() const;
};

RunPlan PlanRun(const RunSpec& run, int ranks, Backend& backend);

// Scalars that the trainer itself exchanges in a step: tokens that count, stop flag, loss, norm.
int64_t ControlBytesPerStep(const RunSpec& run, int ranks);

}  // namespace filigree
