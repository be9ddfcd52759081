#include "trainer/batch_feeder.h"

#include <algorithm>
#include <utility>

namespace filigree {

BatchFeeder::BatchFeeder(Device& device, int64_t sequences, int64_t seq_len) : device_(device), fed_(device.NewEvent()) {
  const size_t bytes = static_cast<size_t>(sequences * seq_len) * sizeof(int32_t);
  for (DeviceBuffer* buffer : {&tokens_, &targets_}) {
    *buffer = device.Allocate(bytes, "activations");
  }
  for (DeviceBuffer* buffer : {&host_tokens_, &host_targets_}) {
    *buffer = device.AllocatePinned(bytes, "pinned");
  }
  Reserve(&losses_);
}

void BatchFeeder::Reserve(TokenSums* sums) {
  sums->values = device_.Allocate(tokens_.bytes(), "activations");
  sums->host = device_.AllocatePinned(tokens_.bytes(), "pinned");
  sums->fetched = device_.NewEvent();
}

MicroBatch BatchFeeder::Feed(const int32_t* tokens, const int32_t* targets, int64_t rows,
                             int64_t seq_len, Stream& stream) {
  const int64_t count = rows * seq_len;
  // The copies of the batch before must be done with the pinned memory.
  fed_->Synchronize();
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
  fed_->Record(stream);
  return batch;
}

TensorView BatchFeeder::Losses(int64_t rows, int64_t seq_len) {
  return losses_.values.View(DType::kF32, rows * seq_len);
}

TensorView BatchFeeder::Divergences(int64_t rows, int64_t seq_len) {
  if (divergences_.values.bytes() == 0) Reserve(&divergences_);
  return divergences_.values.View(DType::kF32, rows * seq_len);
}

void BatchFeeder::Fetch(int64_t count, Stream& stream, TokenSums* sums) {
  Collect(sums);
  device_.CopyAsync(sums->host.View(DType::kF32, count), sums->values.View(DType::kF32, count),
                    stream);
  sums->fetched->Record(stream);
  sums->under_way = count;
}

void BatchFeeder::Collect(TokenSums* sums) {
  if (sums->under_way == 0) return;
  sums->fetched->Synchronize();
  const float* values = sums->host.View(DType::kF32, sums->under_way).As<float>();
  double sum = 0;
  for (int64_t i = 0; i < sums->under_way; ++i) sum += values[i];
  sums->sum += sum;
  sums->under_way = 0;
}

double BatchFeeder::Take(TokenSums* sums) {
  Collect(sums);
  return std::exchange(sums->sum, 0.0);
}

}  // namespace filigree
