// Moves micro-batches from the host to the device and losses back.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "trainer/model/model.h"

namespace filigree {

class BatchFeeder {
 public:
  // Room for micro-batches of at most `sequences` x `seq_len`. `device` must outlive the feeder.
  BatchFeeder(Device& device, int64_t sequences, int64_t seq_len);
  // What one takes of the device's memory (kind "activations"), with a teacher's divergences or not.
  static int64_t Bytes(int64_t sequences, int64_t seq_len, bool divergences);

  // Copies `rows` rows of tokens and targets ([rows, seq_len]; targets may be nullptr: all masked)
  // to the device. The host arrays may be reused at once. A `loss_scale` but 0 goes with them.
  MicroBatch Feed(const int32_t* tokens, const int32_t* targets, int64_t rows, int64_t seq_len,
                  Stream& stream, double loss_scale = 0);
  // Where the losses of a micro-batch of `rows` rows go on the device: [rows * seq_len].
  TensorView Losses(int64_t rows, int64_t seq_len);
  // Starts the way of the micro-batch's first `count` losses to the host, and goes on.
  void FetchLosses(int64_t count, Stream& stream) { Fetch(count, stream, &losses_); }
  // Of all that were fetched since the last call, each micro-batch's in order, in double. Waits for
  // them.
  double TakeLosses() { return Take(&losses_); }
  // The same for divergences from a teacher. The memory is there from the first call on.
  TensorView Divergences(int64_t rows, int64_t seq_len);
  void FetchDivergences(int64_t count, Stream& stream) { Fetch(count, stream, &divergences_); }
  double TakeDivergences() { return Take(&divergences_); }

 private:
  // A number a token, and the sums of those that came to the host.
  struct TokenSums {
    DeviceBuffer values, host;
    std::unique_ptr<Event> fetched;
    int64_t under_way = 0;
    double sum = 0;
  };
  void Reserve(TokenSums* sums);
  void Fetch(int64_t count, Stream& stream, TokenSums* sums);
  // Adds what is under way.
  void Collect(TokenSums* sums);
  double Take(TokenSums* sums);

  Device& device_;
  const int64_t capacity_;      // tokens
  DeviceBuffer batch_, host_;   // [tokens, targets, loss scale], which travel in one copy
  std::unique_ptr<Event> fed_;  // the last batch's
  TokenSums losses_, divergences_;
};

}  // namespace filigree
