// Moves micro-batches from the host to the device and losses back.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "trainer/model/model.h"

namespace filigree {

class BatchFeeder {
 public:
  // Room for micro-batches of at most `sequences` x `seq_len`. `device` must outlive the feeder.
  BatchFeeder(Device& device, int64_t sequences, int64_t seq_len);

  // Copies `rows` rows of tokens and targets ([rows, seq_len]; targets may be nullptr: all masked)
  // to the device. The host arrays may be reused at once.
  MicroBatch Feed(const int32_t* tokens, const int32_t* targets, int64_t rows, int64_t seq_len,
                  Stream& stream);
  // Where the losses of a micro-batch of `rows` rows go on the device: [rows * seq_len].
  TensorView Losses(int64_t rows, int64_t seq_len);
  // Sum of the first `count` losses, in order, in double. Waits for the stream.
  double SumLosses(int64_t count, Stream& stream) { return Sum(losses_, count, stream); }
  // The same for divergences from a teacher. The memory is there from the first call on.
  TensorView Divergences(int64_t rows, int64_t seq_len);
  double SumDivergences(int64_t count, Stream& stream) { return Sum(divergences_, count, stream); }

 private:
  double Sum(const DeviceBuffer& values, int64_t count, Stream& stream);

  Device& device_;
  DeviceBuffer tokens_, targets_, losses_, divergences_;
  DeviceBuffer host_tokens_, host_targets_, host_losses_;
};

}  // namespace filigree
