#include "trainer/batch_feeder.h"

#include <algorithm>

namespace filigree {

BatchFeeder::BatchFeeder(Device& device, int64_t sequences, int64_t seq_len) : device_(device) {
  const size_t bytes = static_cast<size_t>(sequences * seq_len) * sizeof(int32_t);
  for (DeviceBuffer* buffer : {&tokens_, &targets_, &losses_}) {
    *buffer = device.Allocate(bytes, "activations");
  }
  for (DeviceBuffer* buffer : {&host_tokens_, &host_targets_, &host_losses_}) {
    *buffer = device.AllocatePinned(bytes, "pinned");
  }
}

MicroBatch BatchFeeder::Feed(const int32_t* tokens, const int32_t* targets, int64_t rows,
                             int64_t seq_len, Stream& stream) {
  const int64_t count = rows * seq_len;
  // The copies of the batch before must be done with the pinned memory.
  stream.Synchronize();
  TensorView host_tokens = host_tokens_.View(DType::kI32, count);
  TensorView host_targets = host_targets_.View(DType::kI32, count);
  std::copy_n(tokens, count, host_tokens.As<int32_t>());
  if (targets) {
    std::copy_n(targets, count, host_targets.As<int32_t>());
  } else {
    std::fill_n(host_targets.As<int32_t>(), count, -1);
  }
  MicroBatch batch;
  batch.tokens = tokens_.View(DType::kI32, count);
  batch.targets = targets_.View(DType::kI32, count);
  batch.seq_len = seq_len;
  device_.CopyAsync(tokens_.View(DType::kI32, count), host_tokens, stream);
  device_.CopyAsync(targets_.View(DType::kI32, count), host_targets, stream);
  return batch;
}

TensorView BatchFeeder::Losses(int64_t rows, int64_t seq_len) {
  return losses_.View(DType::kF32, rows * seq_len);
}

TensorView BatchFeeder::Divergences(int64_t rows, int64_t seq_len) {
  if (divergences_.bytes() == 0) {
    divergences_ = device_.Allocate(losses_.bytes(), "activations");
  }
  return divergences_.View(DType::kF32, rows * seq_len);
}

double BatchFeeder::Sum(const DeviceBuffer& values, int64_t count, Stream& stream) {
  TensorView host = host_losses_.View(DType::kF32, count);
  device_.CopyAsync(host, values.View(DType::kF32, count), stream);
  stream.Synchronize();
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += host.As<float>()[i];
  return sum;
}

}  // namespace filigree
