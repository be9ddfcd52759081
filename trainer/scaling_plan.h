// What the scaling model says of a run: its own buckets, on 8 to 4,096 GPUs.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/flat_layout.h"
#include "kernels/backend.h"
#include "trainer/parameter.h"
#include "trainer/scaling_model.h"
#include "trainer/spec.h"

namespace filigree {

struct ScalingPoint {
  int gpus = 0;
  int64_t bucket_bytes = 0;  // of gradients, as the run would choose
  int buckets = 0;
  int64_t exchanged_bytes = 0;  // payload of a step, as counted by the run
  StepPrediction step;
};

// What a step over `layout` sends, and when: a gradient may leave when the backward pass is through
// with its parameter and a value is needed when the forward pass comes to it, passes being measured
// in the weights that compute has multiplied (stored blocks of block-sparse matrices, all cells of
// others; a tied head is one more matrix at the end; attention's own products are spread alike).
StepExchange ExchangeOfStep(const std::vector<Parameter>& parameters, bool tied_head,
                            const FlatLayout& layout, DType value_dtype, DType wire_dtype,
                            int scalar_reductions);

// The run's first phase on 8, 16, ... 4,096 GPUs, each with the sequences that a rank has where
// `ranks` share the config's step, which take it `step_seconds`. Values travel in BF16 and
// gradients in F32, as GPUs exchange them, on whatever device this is called.
std::vector<ScalingPoint> PlanScaling(const RunSpec& run, int ranks, double step_seconds,
                                      double jitter, Backend& backend);
// Micro-batches that a rank accumulates in a step of the run's first phase.
int MicroBatchesOf(const RunSpec& run, int ranks);

}  // namespace filigree
