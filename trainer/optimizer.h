// One AdamW update over the pieces of the flat buffers that this rank owns.
//
// The optimizer knows no sparsity: gradients, moments and master hold stored values only, so a zero
// costs nothing here. Clipping is by the global norm of the stored gradients of all ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
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
  // What is rounded stochastically takes random bits that are a function of `rounding_seed`, the
  // parameter, the update and the element: they are the same at any number of ranks.
  Optimizer(const std::vector<Parameter>& parameters, std::vector<int64_t> growth_ramps,
            uint64_t rounding_seed, FlatBuffer& buffer, GradientExchange& exchange,
            Backend& backend);

  // Device memory that it takes beside the buffer.
  static int64_t ScratchBytes();

  // Every rank has the sums of all gradients (sample_tree.h), under ZeRO-1 too: the norm is taken
  // parameter by parameter, the same bits however they are sharded, and nothing is exchanged.
  void TakeWholeGradients() { whole_gradients_ = true; }

  struct Result {
    double grad_norm = 0;  // before clipping; may be non-finite
    bool skipped = false;  // a non-finite gradient on some rank: no value was changed
    // The same, found after some were: the state must be loaded again.
    bool spoiled = false;
  };
  // Waits for the exchanged gradients bucket by bucket, updates master, moments and values of the
  // owned pieces and, under ZeRO-1, starts gathering the values of each bucket once it is updated.
  // `step` counts the updates since the moments were fresh, from 1.
  Result Step(const OptimizerSpec& spec, double lr, int64_t step, Stream& stream);
  // Of the exchanged gradients of all ranks. Collective.
  double GradNorm(Stream& stream);

  // What an update of AdamW is told beside the gradients.
  struct UpdateArgs {
    OptimizerSpec spec;
    double lr = 0;
    int64_t step = 1;
  };
  // Step in pieces, bucket by bucket while backward goes on (layer_updates.h). The norm of all
  // gradients is known only at the end, so clipping takes the step before's (of the first step
  // there is none, and AdamW's first update does not depend on the gradient's size). Without
  // `update` nothing is changed and the norm is taken. The gradients of a bucket are to be there,
  // and may be forgotten afterwards.
  void BeginPieces(const std::optional<UpdateArgs>& update, Stream& stream);
  void UpdatePiece(int bucket, Stream& stream);
  Result EndPieces(Stream& stream);  // collective

  // Before clipping, of the last step that was not skipped; 0: there was none. Part of the state
  // where updates come in pieces.
  double last_norm() const { return last_norm_; }
  void set_last_norm(double norm) { last_norm_ = norm; }

 private:
  int BucketOf(const OwnedRange& range) const {
    return buffer_.layout().segments()[range.segment].bucket;
  }
  // This rank's sum of squares, on the device.
  void SumSquares(Stream& stream);
  // Adds the other shards' there and starts the sum's way to the host, where NormOfSum waits for it.
  void FetchSum(Stream& stream);
  double NormOfSum();
  // The scale that clips gradients of norm `norm`, copied to the device.
  void CopyScale(const OptimizerSpec& spec, double norm, Stream& stream);
  void UpdateAll(const UpdateArgs& update, Stream& stream);
  // `run` is one of update_runs_.
  void Update(const OwnedRange& run, const UpdateArgs& update, Stream& stream);
  std::vector<RoundedRange> RoundingOf(const OwnedRange& run, int64_t step) const;

  // The owned pieces, neighbours joined to longer runs: each run is one launch. The padding between
  // segments joins them; it is zero in every array and an update leaves it so.
  std::vector<OwnedRange> runs_;         // what the norm sums
  std::vector<OwnedRange> update_runs_;  // all of one run decay, or none
  // The pieces of each of `update_runs_`, where random bits are drawn for them.
  std::vector<std::vector<OwnedRange>> rounded_;

  const std::vector<Parameter>& parameters_;
  const std::vector<int64_t> growth_ramps_;
  const uint64_t rounding_seed_;
  FlatBuffer& buffer_;
  GradientExchange& exchange_;
  Backend& backend_;
  DeviceBuffer scalars_;  // [0]: F64 sum of squares; [8]: F32 scale
  bool whole_gradients_ = false;
  std::unique_ptr<Event> updated_, fetched_;
  std::optional<UpdateArgs> pieces_;
  double last_norm_ = 0;
  DeviceBuffer host_sum_;  // F64
  float host_scale_ = 0;
};

}  // namespace filigree
