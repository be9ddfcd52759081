// How long a data-parallel step takes on many GPUs: a simulation of one step's exchange beside its
// compute, from numbers alone.
//
// Weak scaling: every rank computes what one GPU computes in `step_seconds`, and the tokens of a
// step grow with the ranks. What the model assumes:
//   - a step is forward (1/3), backward (2/3), of each micro-batch; gradients leave during the
//     backward pass of the last micro-batch, each transfer when the fraction of it that
//     `Transfer::at` says is done, one at a time in that order (NCCL keeps one stream);
//   - what is still under way when backward ends is exposed;
//   - ZeRO-1 gathers values, in order, from the update on; the next forward pass (of the first
//     micro-batch) stops where it needs what has not come, and goes on later: the stops are
//     exposed;
//   - compute is not slowed by the exchange beside it;
//   - collectives cost what comm/link_model.h says; scalars (norm, loss, stop flag) a tree each;
//   - hosts do not finish together. Times of a host vary by `jitter` (standard deviation over mean)
//     around the mean, normal and independent, and a step takes the longest of all hosts, which is
//     jitter * E[max of n normal numbers] more than the mean. One host has none. The default of one
//     per cent was set with published curves of up to 128 GPUs in view (published_scaling_test.cc).
#pragma once

#include <vector>

#include "comm/link_model.h"

namespace filigree {

struct Transfer {
  Collective collective = Collective::kAllReduce;
  double bytes = 0;
  // Fraction of the pass: done when a gradient may leave, or when a value is needed first.
  double at = 0;
};

// What crosses ranks in a step.
struct StepExchange {
  std::vector<Transfer> backward = {};  // gradients; `at` does not fall
  std::vector<Transfer> forward = {};   // values; `at` does not fall
  int scalar_reductions = 0;
};

struct ComputeTimes {
  double step_seconds = 0;  // of one GPU that exchanges nothing, optimizer included
  int micro_batches = 1;    // accumulated a step
  double jitter = 0.01;
};

struct StepPrediction {
  double seconds = 0;
  double exposed_gradients = 0, exposed_values = 0;  // seconds
  double scalars = 0, jitter = 0;                    // seconds
  double exchange = 0;    // seconds that the network is busy, exposed or not
  double efficiency = 1;  // compute alone / seconds
};

// One step on `ranks` GPUs.
StepPrediction PredictStep(const LinkSpec& link, const ComputeTimes& compute,
                           const StepExchange& exchange, int ranks);

// The expected largest of n standard normal numbers: 0, 0.564, 0.846, ...
double ExpectedMaximum(int n);

}  // namespace filigree
