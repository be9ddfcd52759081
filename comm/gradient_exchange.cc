#include "comm/gradient_exchange.h"

#include <span>
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
                                     DType grad_dtype) {
  ExchangedBytes bytes;
  if (world_size == 1) return bytes;
  for (const Bucket& bucket : layout.buckets()) {
    CountGrads(bucket, grad_dtype, &bytes);
    if (layout.shards() > 1) CountValues(bucket, value_dtype, &bytes);
  }
  return bytes;
}

GradientExchange::GradientExchange(FlatBuffer& buffer, Communicator& communicator)
    : buffer_(buffer), communicator_(communicator) {
  const size_t buckets = buffer.layout().buckets().size();
  CHECK(buffer.layout().shards() == 1 || buffer.layout().shards() == communicator.size())
      << buffer.layout().shards() << " shards, " << communicator.size() << " ranks";
  CHECK(buffer.layout().shards() == 1 || buffer.shard() == communicator.rank())
      << "shard " << buffer.shard() << " on rank " << communicator.rank();
  grad_work_.resize(buckets);
  value_work_.resize(buckets);
  Reset();
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

void GradientExchange::Launch(int bucket, const Event& ready) {
  const FlatLayout& layout = buffer_.layout();
  const Bucket& b = layout.buckets()[bucket];
  const TensorView whole = buffer_.grads().Range(b.offset, b.count);
  if (layout.shards() == 1) {
    grad_work_[bucket] = communicator_.AllReduce(whole, ReduceOp::kSum, ready);
  } else {
    const FlatLayout::Slice own = layout.slice(bucket, buffer_.shard());
    const TensorView slice = buffer_.grads().Range(own.flat_offset, own.count);
    grad_work_[bucket] = communicator_.ReduceScatter(whole, slice, ReduceOp::kSum, ready);
  }
  CountGrads(b, whole.dtype(), &bytes_);
}

void GradientExchange::WaitGrads(Stream& stream) {
  for (size_t segment = 0; segment < ready_.size(); ++segment) {
    CHECK(ready_[segment]) << "segment " << segment << " was never marked ready";
  }
  for (auto& work : grad_work_) {
    if (work) work->Wait(stream);
    work.reset();
  }
  Reset();
}

void GradientExchange::StartGatherValues(const Event& updated) {
  const FlatLayout& layout = buffer_.layout();
  if (layout.shards() == 1) return;
  for (size_t bucket = 0; bucket < layout.buckets().size(); ++bucket) {
    CHECK(!value_work_[bucket]) << "values of bucket " << bucket << " are still being gathered";
    const Bucket& b = layout.buckets()[bucket];
    const FlatLayout::Slice own = layout.slice(static_cast<int>(bucket), buffer_.shard());
    value_work_[bucket] =
        communicator_.AllGather(buffer_.values().Range(own.flat_offset, own.count),
                                buffer_.values().Range(b.offset, b.count), updated);
    CountValues(b, buffer_.values().dtype(), &bytes_);
  }
}

void GradientExchange::WaitValues(int segment, Stream& stream) {
  auto& work = value_work_[buffer_.layout().segments()[segment].bucket];
  if (work) work->Wait(stream);
  work.reset();
}

void GradientExchange::WaitAllValues(Stream& stream) {
  for (size_t segment = 0; segment < ready_.size(); ++segment) {
    WaitValues(static_cast<int>(segment), stream);
  }
}

double GradientExchange::ReduceOverShards(double value) {
  if (buffer_.layout().shards() == 1) return value;
  communicator_.AllReduceHost(std::span<double>(&value, 1), ReduceOp::kSum);
  CountControl(sizeof(value));
  return value;
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
