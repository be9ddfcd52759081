#include "trainer/batch_feeder.h"

#include <algorithm>
#include <utility>

namespace filigree {

int64_t BatchFeeder::Bytes(int64_t sequences, int64_t seq_len, bool divergences) {
  // Tokens and targets, the loss's scale, losses.
  const int64_t numbers = (divergences ? 4 : 3) * sequences * seq_len + 1;
  return numbers * static_cast<int64_t>(sizeof(int32_t));
}

BatchFeeder::BatchFeeder(Device& device, int64_t sequences, int64_t seq_len)
    : device_(device), capacity_(sequences * seq_len), fed_(device.NewEvent()) {
  const size_t bytes = static_cast<size_t>(2 * capacity_ + 1) * sizeof(int32_t);
  batch_ = device.Allocate(bytes, "activations");
  host_ = device.AllocatePinned(bytes, "pinned");
  Reserve(&losses_);
}

void BatchFeeder::Reserve(TokenSums* sums) {
  const size_t bytes = static_cast<size_t>(capacity_) * sizeof(float);
  sums->values = device_.Allocate(bytes, "activations");
  sums->host = device_.AllocatePinned(bytes, "pinned");
  sums->fetched = device_.NewEvent();
}

MicroBatch BatchFeeder::Feed(const int32_t* tokens, const int32_t* targets, int64_t rows,
                             int64_t seq_len, Stream& stream, double loss_scale) {
  const int64_t count = rows * seq_len;
  CHECK_LE(count, capacity_);
  // The copy of the batch before must be done with the pinned memory.
  fed_->Synchronize();
  auto* host = host_.View(DType::kI32, 2 * capacity_).As<int32_t>();
  std::copy_n(tokens, count, host);
  if (targets) {
    std::copy_n(targets, count, host + capacity_);
  } else {
    std::fill_n(host + capacity_, count, -1);
  }
  const size_t scale_byte = static_cast<size_t>(2 * capacity_) * sizeof(int32_t);
  *host_.View(DType::kF32, 1, scale_byte).As<float>() = static_cast<float>(loss_scale);
  const auto bytes = static_cast<int64_t>(batch_.bytes());
  device_.CopyAsync(batch_.View(DType::kU8, bytes), host_.View(DType::kU8, bytes), stream);
  fed_->Record(stream);
  const TensorView batch = batch_.View(DType::kI32, 2 * capacity_);
  MicroBatch micro;
  micro.tokens = batch.Range(0, count);
  micro.targets = batch.Range(capacity_, count);
  micro.seq_len = seq_len;
  if (loss_scale != 0) micro.loss_scale = batch_.View(DType::kF32, 1, scale_byte);
  return micro;
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
