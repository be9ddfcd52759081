// Gradient exchange by buckets, overlapped with backward. Knows segments, not models.
//
// Backward finishes segments roughly in reverse order of creation and calls MarkReady for each;
// when all segments of a bucket are ready it leaves at once: all-reduce under ZeRO-0,
// reduce-scatter under ZeRO-1 (after which only the rank's own slice of the bucket holds the sum).
// After the optimizer, ZeRO-1 gathers the updated values bucket by bucket, in forward order. All
// ranks make the same calls in the same order.
// Gradients are summed, not averaged: the loss is scaled by the step's global number of valid
// tokens.
//
// Bytes are counted by kind as the payload of each collective: elements of the bucket, padding
// included, times the element's size, once for an all-reduce, a reduce-scatter or an all-gather;
// nothing when there is one rank.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "comm/flat_buffer.h"

namespace filigree {

struct ExchangedBytes {
  int64_t sparsified_grads = 0, dense_grads = 0;
  int64_t sparsified_values = 0, dense_values = 0;  // ZeRO-1's all-gather
  int64_t control = 0;                              // norms, losses
  int64_t total() const {
    return sparsified_grads + dense_grads + sparsified_values + dense_values + control;
  }
};

// What one step over this layout exchanges, without control values: `plan` prints it and a run's
// count must equal it.
ExchangedBytes PredictExchangedBytes(const FlatLayout& layout, int world_size, DType value_dtype,
                                     DType grad_dtype);

class GradientExchange {
 public:
  // `buffer` and `communicator` must outlive the exchange. The buffer has one shard, or one for
  // each rank, its own being the rank.
  GradientExchange(FlatBuffer& buffer, Communicator& communicator);

  // The gradient of `segment` is final for this step once `ready` is complete. Each segment once a
  // step, in any order. A bucket leaves with its last segment and waits for that one's event alone,
  // so the events of a step are recorded on one stream, in the order of the calls.
  void MarkReady(int segment, const Event& ready);
  // All segments were marked. Work on `stream` may read the summed gradients afterwards, and the
  // next step may begin.
  void WaitGrads(Stream& stream);

  // ZeRO-1: starts gathering the values that the ranks updated in their own slices, complete with
  // `updated`, bucket by bucket (nothing under ZeRO-0).
  void StartGatherValues(const Event& updated);
  // Work on `stream` may read the values of `segment`. Call before its first use in a forward pass.
  void WaitValues(int segment, Stream& stream);
  // The same for all segments: nothing is under way afterwards.
  void WaitAllValues(Stream& stream);

  // Sum over ranks of the shards' sums (under ZeRO-0 every rank holds the whole: nothing to add).
  // Blocking; counted as control.
  double ReduceOverShards(double value);

  // Since the last call of TakeBytes.
  ExchangedBytes TakeBytes();
  // Counts gradients that the caller exchanged itself, all of them, so many times.
  void CountGradients(int64_t times);
  // Counts scalars that the caller exchanged itself (nothing where there is one rank).
  void CountControl(int64_t bytes);

 private:
  void Reset();
  void Launch(int bucket, const Event& ready);

  FlatBuffer& buffer_;
  Communicator& communicator_;
  std::vector<int> missing_;  // per bucket: segments not yet ready
  std::vector<bool> ready_;   // per segment
  std::vector<std::unique_ptr<Work>> grad_work_, value_work_;
  ExchangedBytes bytes_;
};

}  // namespace filigree
