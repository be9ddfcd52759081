// Gradient exchange by buckets, overlapped with backward. Knows segments, not models.
//
// Backward finishes segments roughly in reverse order of creation and calls MarkReady for each;
// when all segments of a bucket are ready it leaves at once: all-reduce under ZeRO-0,
// reduce-scatter under ZeRO-1 (after which only the rank's own slice of the bucket holds the sum).
// As the optimizer updates buckets, in forward order, ZeRO-1 gathers their values. All ranks make
// the same calls in the same order.
//
// Gradients may travel in a narrower dtype than each rank sums its own micro-batches in (a
// NarrowWire): a full bucket is rounded once, into memory of its own, and that is reduced.
//
// Gradients are summed, not averaged: the loss is scaled by the step's global number of valid
// tokens.
//
// Bytes are counted by kind as the payload of each collective: elements of the bucket, padding
// included, times the element's size, once for an all-reduce, a reduce-scatter or an all-gather;
// nothing when there is one rank.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "comm/flat_buffer.h"
#include "comm/stall_timer.h"

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
                                     DType wire_dtype);

// Bytes of a landing for buckets of this layout: where copy engines carry gradients, the ranks'
// slices of one bucket at a time come to rest in it before they are summed. The first bucket leaves
// last, when nothing computes beside it: kernels carry it, which are quicker alone. Nothing under
// ZeRO-0.
int64_t LandingBytes(const FlatLayout& layout, DType wire_dtype);

// Memory that GPUs of one host reach in each other is handed out in whole pieces of this size.
inline constexpr int64_t kPeerMemoryPiece = int64_t{2} << 20;

// The dtype in which gradients travel where it is not their own, and the operation that rounds to
// it: `to` = `from`, of the same size, on `stream`.
struct NarrowWire {
  DType dtype = DType::kBF16;
  std::function<void(ConstTensorView from, TensorView to, Stream& stream)> round;
};

class GradientExchange {
 public:
  // `buffer` and `communicator` must outlive the exchange. The buffer has one shard, or one for
  // each rank, its own being the rank. A narrow wire costs one whole array in its dtype (kind
  // "grads"), and nothing where there is one rank, which sends nothing. Where the communicator
  // copies peers' memory a landing joins that kind. Collective.
  GradientExchange(FlatBuffer& buffer, Communicator& communicator,
                   std::optional<NarrowWire> wire = std::nullopt);

  // Whether there are other ranks: anything is sent at all.
  bool travels() const { return communicator_.size() > 1; }

  // The gradient of `segment` is final for this step once `ready` is complete. Each segment once a
  // step, in any order. A bucket leaves with its last segment and waits for that one's event alone,
  // so the events of a step are recorded on one stream, in the order of the calls.
  void MarkReady(int segment, const Event& ready);
  // All segments were marked: backward is over, and the next step's may begin once the gradients
  // were waited for.
  void EndBackward();
  // Work on `stream` may read the summed gradients of `bucket` afterwards. Buckets leave roughly in
  // falling order.
  void WaitGrads(int bucket, Stream& stream);
  // The same for all buckets.
  void WaitGrads(Stream& stream);
  // Where the summed gradients are, as a flat array [total_count] like the buffer's: the buffer's
  // own, or what a narrow wire brought. Under ZeRO-1 the own slices alone are defined.
  TensorView summed_grads() const;
  // Of an owned range inside a bucket, also where not all gradients exist at once.
  TensorView SummedGrads(const OwnedRange& range) const;

  // ZeRO-1: starts gathering the values of `bucket` that the ranks updated in their own slices,
  // complete with `updated` (nothing under ZeRO-0). In rising order of buckets.
  void StartGatherValues(int bucket, const Event& updated);
  // The same for all buckets.
  void StartGatherValues(const Event& updated);
  // Work on `stream` may read the values of `segment`. Call before its first use in a forward pass.
  void WaitValues(int segment, Stream& stream);
  // The same for all segments: nothing is under way afterwards.
  void WaitAllValues(Stream& stream);

  // `sums`, of the rank's own slices, becomes the ranks' sum for work on `stream` (under ZeRO-0 every
  // rank holds the whole: nothing to add). Counted as control.
  void SumOverShards(TensorView sums, Stream& stream);

  // The collective over the gradients of `bucket`, as summed_grads() has them at `ready`. A step's
  // buckets leave by it; benchmarks time it. Counts nothing.
  std::unique_ptr<Work> Reduce(int bucket, const Event& ready);
  // Sums `whole`, part of summed_grads(), over the ranks into this rank's slice of it: by copies
  // where it fits the landing. Reduce does so with all buckets but the first.
  std::unique_ptr<Work> ReduceScatter(TensorView whole, TensorView own, const Event& ready);

  // From now on `timer` (nullptr: none) learns how long streams wait for gradients and values.
  void set_stall_timer(StallTimer* timer) { stall_timer_ = timer; }

  // Since the last call of TakeBytes.
  ExchangedBytes TakeBytes();
  // Counts gradients that the caller exchanged itself, all of them, so many times.
  void CountGradients(int64_t times);
  // Counts scalars that the caller exchanged itself (nothing where there is one rank).
  void CountControl(int64_t bytes);

 private:
  void Reset();
  TensorView SummedGrads(int bucket, int64_t begin, int64_t count) const;
  void Launch(int bucket, const Event& ready);
  // Rounds a bucket to the wire's dtype after `ready`; returns what its collective waits for.
  const Event& Round(int bucket, const Event& ready);
  // Makes `stream` wait for a collective under way, if there is one, and forgets it.
  void Wait(std::unique_ptr<Work>& work, StallTimer::Cause cause, Stream& stream);

  FlatBuffer& buffer_;
  Communicator& communicator_;
  std::optional<NarrowWire> wire_;  // where gradients travel by one
  DeviceBuffer wire_buffer_;
  DeviceBuffer landing_;  // where the communicator copies peers' memory; collectives take turns
  std::unique_ptr<Stream> wire_stream_;  // rounds, beside backward
  std::unique_ptr<Event> rounded_;
  std::unique_ptr<Event> summed_;  // what the ranks' sums wait for
  std::vector<int> missing_;  // per bucket: segments not yet ready
  std::vector<bool> ready_;   // per segment
  std::vector<std::unique_ptr<Work>> grad_work_, value_work_;
  StallTimer* stall_timer_ = nullptr;
  ExchangedBytes bytes_;
};

}  // namespace filigree
