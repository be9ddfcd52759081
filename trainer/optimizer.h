// One AdamW update over the pieces of the flat buffers that this rank owns.
//
// The optimizer knows no sparsity: gradients, moments and master hold stored values only, so a zero
// costs nothing here. Clipping is by the global norm of the stored gradients of all ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/gradient_exchange.h"
#include "kernels/backend.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// Which update since its moments were fresh the run's step `step` (0-based, in phase `phase`)
// performs, from 1: AdamW's bias correction counts from there. A phase that rewinds to a step has
// the moments, and so the count, of that step.
int64_t UpdatesSinceFreshMoments(const RunSpec& run, int phase, int64_t step);

class Optimizer {
 public:
  // All referenced objects must outlive the optimizer. Parameter i is segment i of `buffer`.
  // `growth_ramps`: of each parameter, in updates, where the buffer knows when values joined.
  Optimizer(const std::vector<Parameter>& parameters, std::vector<int64_t> growth_ramps,
            FlatBuffer& buffer, GradientExchange& exchange, Backend& backend);

  // Every rank has the sums of all gradients (sample_tree.h), under ZeRO-1 too: the norm is taken
  // parameter by parameter, the same bits however they are sharded, and nothing is exchanged.
  void TakeWholeGradients() { whole_gradients_ = true; }

  struct Result {
    double grad_norm = 0;  // before clipping; may be non-finite
    bool skipped = false;  // a non-finite gradient on some rank: no value was changed
  };
  // Waits for the exchanged gradients bucket by bucket, updates master, moments and values of the
  // owned pieces and, under ZeRO-1, starts gathering the values of each bucket once it is updated.
  // `step` counts the updates since the moments were fresh, from 1.
  Result Step(const OptimizerSpec& spec, double lr, int64_t step, Stream& stream);
  // Of the exchanged gradients of all ranks. Collective.
  double GradNorm(Stream& stream);
  void Update(const OwnedRange& run, const OptimizerSpec& spec, double lr, int64_t step,
              ConstTensorView scale, Stream& stream);
  int BucketOf(const OwnedRange& range) const {
    return buffer_.layout().segments()[range.segment].bucket;
  }

 private:
  // The owned pieces, neighbours joined to longer runs: each run is one launch. The padding between
  // segments joins them; it is zero in every array and an update leaves it so.
  std::vector<OwnedRange> runs_;         // what the norm sums
  std::vector<OwnedRange> update_runs_;  // all of one run decay, or none

  const std::vector<Parameter>& parameters_;
  const std::vector<int64_t> growth_ramps_;
  FlatBuffer& buffer_;
  GradientExchange& exchange_;
  Backend& backend_;
  DeviceBuffer scalars_;  // [0]: F64 sum of squares; [8]: F32 scale
  bool whole_gradients_ = false;
  std::unique_ptr<Event> updated_;
  double host_sum_ = 0;
  float host_scale_ = 0;
};

}  // namespace filigree
