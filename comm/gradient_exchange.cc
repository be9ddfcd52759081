#include "comm/gradient_exchange.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// Adds a collective over one bucket to the count of its kind.
void Count(const Bucket& bucket, DType dtype, int64_t* sparsified, int64_t* dense) {
  const int64_t bytes = bucket.count * static_cast<int64_t>(SizeOf(dtype));
  (bucket.kind == TrafficKind::kSparsified ? *sparsified : *dense) += bytes;
}

void CountGrads(const Bucket& bucket, DType dtype, ExchangedBytes* bytes) {
  Count(bucket, dtype, &bytes->sparsified_grads, &bytes->dense_grads);
}

void CountValues(const Bucket& bucket, DType dtype, ExchangedBytes* bytes) {
  Count(bucket, dtype, &bytes->sparsified_values, &bytes->dense_values);
}

}  // namespace

ExchangedBytes PredictExchangedBytes(const FlatLayout& layout, int world_size, DType value_dtype,
                                     DType wire_dtype) {
  ExchangedBytes bytes;
  if (world_size == 1) return bytes;
  for (const Bucket& bucket : layout.buckets()) {
    CountGrads(bucket, wire_dtype, &bytes);
    if (layout.shards() > 1) CountValues(bucket, value_dtype, &bytes);
  }
  return bytes;
}

int64_t LandingBytes(const FlatLayout& layout, DType wire_dtype) {
  if (layout.shards() == 1) return 0;
  int64_t largest = 0;
  for (size_t bucket = 1; bucket < layout.buckets().size(); ++bucket) {
    largest = std::max(largest, layout.buckets()[bucket].count);
  }
  return largest * static_cast<int64_t>(SizeOf(wire_dtype));
}

GradientExchange::GradientExchange(FlatBuffer& buffer, Communicator& communicator,
                                   std::optional<NarrowWire> wire)
    : buffer_(buffer), communicator_(communicator) {
  const size_t buckets = buffer.layout().buckets().size();
  CHECK(buffer.layout().shards() == 1 || buffer.layout().shards() == communicator.size())
      << buffer.layout().shards() << " shards, " << communicator.size() << " ranks";
  CHECK(buffer.layout().shards() == 1 || buffer.shard() == communicator.rank())
      << "shard " << buffer.shard() << " on rank " << communicator.rank();
  grad_work_.resize(buckets);
  value_work_.resize(buckets);
  Reset();
  Device& device = buffer.device();
  summed_ = device.NewEvent();
  if (communicator.copies_peer_memory() && buffer.layout().shards() > 1) {
    const DType dtype = wire ? wire->dtype : buffer.grads().dtype();
    landing_ = communicator.Allocate(device, LandingBytes(buffer.layout(), dtype), "grads");
  }
  if (!wire || communicator.size() == 1) return;
  const int64_t total = buffer.layout().total_count();
  wire_ = std::move(wire);
  const size_t bytes = static_cast<size_t>(total) * SizeOf(wire_->dtype);
  wire_buffer_ = buffer.layout().shards() > 1 ? communicator.Allocate(device, bytes, "grads")
                                              : device.Allocate(bytes, "grads");
  wire_stream_ = device.NewStream();
  rounded_ = device.NewEvent();
}

TensorView GradientExchange::SummedGrads(int bucket, int64_t begin, int64_t count) const {
  if (!wire_) return buffer_.BucketGrads(bucket).Range(begin, count);
  const int64_t first = buffer_.layout().buckets()[bucket].offset + begin;
  const size_t first_byte = static_cast<size_t>(first) * SizeOf(wire_->dtype);
  return wire_buffer_.View(wire_->dtype, count, first_byte);
}

TensorView GradientExchange::SummedGrads(const OwnedRange& range) const {
  const FlatLayout& layout = buffer_.layout();
  const int bucket = layout.segments()[range.segment].bucket;
  return SummedGrads(bucket, range.flat_begin - layout.buckets()[bucket].offset, range.count);
}

TensorView GradientExchange::summed_grads() const {
  CHECK(wire_ || buffer_.slots().count == 0) << "gradients do not exist all at once";
  return wire_ ? wire_buffer_.View(wire_->dtype, buffer_.layout().total_count()) : buffer_.grads();
}

void GradientExchange::Reset() {
  const FlatLayout& layout = buffer_.layout();
  ready_.assign(layout.segments().size(), false);
  missing_.clear();
  for (const Bucket& bucket : layout.buckets()) {
    missing_.push_back(static_cast<int>(bucket.segments.size()));
  }
}

void GradientExchange::MarkReady(int segment, const Event& ready) {
  CHECK(!ready_[segment]) << "segment " << segment << " was marked twice in one step";
  ready_[segment] = true;
  const int bucket = buffer_.layout().segments()[segment].bucket;
  if (--missing_[bucket] == 0 && communicator_.size() > 1) Launch(bucket, ready);
}

const Event& GradientExchange::Round(int bucket, const Event& ready) {
  wire_stream_->Wait(ready);
  const TensorView grads = buffer_.BucketGrads(bucket);
  wire_->round(grads, SummedGrads(bucket, 0, grads.size()), *wire_stream_);
  rounded_->Record(*wire_stream_);
  return *rounded_;
}

void GradientExchange::Launch(int bucket, const Event& ready) {
  CHECK(!grad_work_[bucket]) << "the last step's gradients of bucket " << bucket
                             << " were never waited for";
  grad_work_[bucket] = Reduce(bucket, wire_ ? Round(bucket, ready) : ready);
  CountGrads(buffer_.layout().buckets()[bucket], wire_ ? wire_->dtype : buffer_.grads().dtype(),
             &bytes_);
}

std::unique_ptr<Work> GradientExchange::Reduce(int bucket, const Event& ready) {
  const FlatLayout& layout = buffer_.layout();
  const Bucket& b = layout.buckets()[bucket];
  const TensorView whole = SummedGrads(bucket, 0, b.count);
  if (layout.shards() == 1) return communicator_.AllReduce(whole, ReduceOp::kSum, ready);
  const FlatLayout::Slice own = layout.slice(bucket, buffer_.shard());
  const TensorView slice = whole.Range(own.flat_offset - b.offset, own.count);
  if (bucket == 0) return communicator_.ReduceScatter(whole, slice, ReduceOp::kSum, ready);
  return ReduceScatter(whole, slice, ready);
}

std::unique_ptr<Work> GradientExchange::ReduceScatter(TensorView whole, TensorView own,
                                                      const Event& ready) {
  if (landing_.bytes() < whole.bytes()) {
    return communicator_.ReduceScatter(whole, own, ReduceOp::kSum, ready);
  }
  const TensorView landing = landing_.View(whole.dtype(), whole.size());
  return communicator_.ReduceScatterThrough(landing, whole, own, ready);
}

void GradientExchange::EndBackward() {
  for (size_t segment = 0; segment < ready_.size(); ++segment) {
    CHECK(ready_[segment]) << "segment " << segment << " was never marked ready";
  }
  Reset();
}

void GradientExchange::Wait(std::unique_ptr<Work>& work, StallTimer::Cause cause, Stream& stream) {
  if (!work) return;
  if (stall_timer_) stall_timer_->Begin(cause, stream);
  work->Wait(stream);
  if (stall_timer_) stall_timer_->End(stream);
  work.reset();
}

void GradientExchange::WaitGrads(int bucket, Stream& stream) {
  Wait(grad_work_[bucket], StallTimer::Cause::kGrads, stream);
}

void GradientExchange::WaitGrads(Stream& stream) {
  for (auto bucket = static_cast<int>(grad_work_.size()) - 1; bucket >= 0; --bucket) {
    WaitGrads(bucket, stream);
  }
}

void GradientExchange::StartGatherValues(int bucket, const Event& updated) {
  const FlatLayout& layout = buffer_.layout();
  if (layout.shards() == 1) return;
  CHECK(!value_work_[bucket]) << "values of bucket " << bucket << " are still being gathered";
  const Bucket& b = layout.buckets()[bucket];
  const FlatLayout::Slice own = layout.slice(bucket, buffer_.shard());
  value_work_[bucket] = communicator_.AllGather(buffer_.values().Range(own.flat_offset, own.count),
                                                buffer_.values().Range(b.offset, b.count), updated);
  CountValues(b, buffer_.values().dtype(), &bytes_);
}

void GradientExchange::StartGatherValues(const Event& updated) {
  for (size_t bucket = 0; bucket < value_work_.size(); ++bucket) {
    StartGatherValues(static_cast<int>(bucket), updated);
  }
}

void GradientExchange::WaitValues(int segment, Stream& stream) {
  Wait(value_work_[buffer_.layout().segments()[segment].bucket], StallTimer::Cause::kValues,
       stream);
}

void GradientExchange::WaitAllValues(Stream& stream) {
  for (size_t segment = 0; segment < ready_.size(); ++segment) {
    WaitValues(static_cast<int>(segment), stream);
  }
}

void GradientExchange::SumOverShards(TensorView sums, Stream& stream) {
  if (buffer_.layout().shards() == 1) return;
  summed_->Record(stream);
  communicator_.AllReduce(sums, ReduceOp::kSum, *summed_)->Wait(stream);
  CountControl(static_cast<int64_t>(sums.bytes()));
}

void GradientExchange::CountGradients(int64_t times) {
  ExchangedBytes once;
  for (const Bucket& bucket : buffer_.layout().buckets()) {
    CountGrads(bucket, buffer_.grads().dtype(), &once);
  }
  bytes_.sparsified_grads += times * once.sparsified_grads;
  bytes_.dense_grads += times * once.dense_grads;
}

void GradientExchange::CountControl(int64_t bytes) {
  if (communicator_.size() > 1) bytes_.control += bytes;
}

ExchangedBytes GradientExchange::TakeBytes() { return std::exchange(bytes_, ExchangedBytes()); }

}  // namespace filigree
