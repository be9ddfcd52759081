#include "comm/flat_buffer.h"

#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

DType MasterDType(DType value_dtype) {
  return value_dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

DeviceBuffer AllocateZeroed(Device& device, DType dtype, int64_t count, const char* kind,
                            Stream& stream) {
  DeviceBuffer buffer = device.Allocate(static_cast<size_t>(count) * SizeOf(dtype), kind);
  device.ZeroAsync(buffer.View(dtype, count), stream);
  return buffer;
}

TensorView State(const FlatBuffer& buffer, const OwnedRange& range, StateKind kind) {
  switch (kind) {
    case StateKind::kMaster:
      return buffer.Master(range);
    case StateKind::kM:
      return buffer.M(range);
    case StateKind::kV:
      return buffer.V(range);
    case StateKind::kBorn:
      return buffer.Born(range);
  }
  CHECK(false) << "state kind " << static_cast<int>(kind);
}

// The values that compute reads, from the master's: rounded where their dtype is narrower.
void WriteValues(FlatBuffer& buffer, int segment, ConstTensorView master, Stream& stream) {
  const TensorView values = buffer.Values(segment);
  if (values.dtype() == master.dtype()) {
    buffer.device().CopyAsync(values, master, stream);
    stream.Synchronize();
    return;
  }
  CHECK(values.dtype() == DType::kBF16) << NameOf(values.dtype());
  std::vector<BFloat16> rounded(values.size());
  const float* source = master.As<float>();
  for (int64_t i = 0; i < values.size(); ++i) rounded[i] = BFloat16(source[i]);
  buffer.device().CopyAsync(values, ConstTensorView(rounded.data(), DType::kBF16, {values.size()}),
                            stream);
  stream.Synchronize();
}

}  // namespace

FlatBuffer::FlatBuffer(Device& device, FlatLayout layout, int shard, DType value_dtype,
                       DType grad_dtype, Stream& stream)
    : FlatBuffer(ValuesOnly(device, std::move(layout), value_dtype, stream)) {
  CHECK(shard >= 0 && shard < layout_.shards()) << "shard " << shard << " of " << layout_.shards();
  shard_ = shard;
  owned_ = layout_.OwnedRanges(shard);
  const int64_t total = layout_.total_count(), own = layout_.shard_count();
  grads_buffer_ = AllocateZeroed(device, grad_dtype, total, "grads", stream);
  grads_ = grads_buffer_.View(grad_dtype, total);
  if (value_dtype != master_dtype_) {
    master_ = AllocateZeroed(device, master_dtype_, own, "master", stream);
  }
  m_ = AllocateZeroed(device, master_dtype_, own, "moments", stream);
  v_ = AllocateZeroed(device, master_dtype_, own, "moments", stream);
}

FlatBuffer FlatBuffer::ValuesOnly(Device& device, FlatLayout layout, DType value_dtype,
                                  Stream& stream) {
  FlatBuffer buffer;
  buffer.device_ = &device;
  buffer.layout_ = std::move(layout);
  buffer.master_dtype_ = MasterDType(value_dtype);
  const int64_t total = buffer.layout_.total_count();
  buffer.values_buffer_ = AllocateZeroed(device, value_dtype, total, "values", stream);
  buffer.values_ = buffer.values_buffer_.View(value_dtype, total);
  return buffer;
}

TensorView FlatBuffer::Values(int segment) const {
  const Segment& s = layout_.segments()[segment];
  return values_.Range(s.offset, s.count);
}

TensorView FlatBuffer::Grads(int segment) const {
  if (grads_.data() == nullptr) return TensorView();
  const Segment& s = layout_.segments()[segment];
  return grads_.Range(s.offset, s.count);
}

TensorView FlatBuffer::Piece(const DeviceBuffer& buffer, const OwnedRange& range) const {
  return buffer.View(master_dtype_, range.count,
                     static_cast<size_t>(range.shard_begin) * SizeOf(master_dtype_));
}

TensorView FlatBuffer::Master(const OwnedRange& range) const {
  return has_master() ? Piece(master_, range) : values_.Range(range.flat_begin, range.count);
}

TensorView FlatBuffer::M(const OwnedRange& range) const { return Piece(m_, range); }

TensorView FlatBuffer::Born(const OwnedRange& range) const {
  return has_born() ? Piece(born_, range) : TensorView();
}

void FlatBuffer::AllocateBorn(Stream& stream) {
  born_ = AllocateZeroed(*device_, master_dtype_, layout_.shard_count(), "moments", stream);
}

TensorView FlatBuffer::V(const OwnedRange& range) const { return Piece(v_, range); }

std::vector<std::byte> GatherSegment(const FlatBuffer& buffer, int segment, StateKind kind,
                                     Communicator& communicator, Stream& stream) {
  const int64_t count = buffer.layout().segments()[segment].count;
  std::vector<std::byte> bytes(static_cast<size_t>(count) * SizeOf(buffer.master_dtype()));
  const TensorView whole(bytes.data(), buffer.master_dtype(), {count});
  const int shards = buffer.layout().shards();
  CHECK(shards == 1 || shards == communicator.size()) << shards << " shards";
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  if (own.count > 0) {
    buffer.device().CopyAsync(whole.Range(own.segment_begin, own.count), State(buffer, own, kind),
                              stream);
  }
  stream.Synchronize();
  if (shards == 1) return bytes;
  const std::unique_ptr<Event> ready = buffer.device().NewEvent();
  ready->Record(stream);
  for (int shard = 0; shard < shards; ++shard) {
    const OwnedRange range = buffer.layout().Owned(segment, shard);
    if (range.count == 0) continue;
    communicator.Broadcast(whole.Range(range.segment_begin, range.count), shard, *ready)
        ->Wait(stream);
  }
  return bytes;
}

void ScatterSegment(FlatBuffer& buffer, int segment, StateKind kind,
                    std::span<const std::byte> whole, Stream& stream) {
  const int64_t count = buffer.layout().segments()[segment].count;
  const ConstTensorView view(whole.data(), buffer.master_dtype(), {count});
  CHECK_EQ(whole.size(), view.bytes());
  if (kind == StateKind::kMaster) WriteValues(buffer, segment, view, stream);
  if (kind == StateKind::kMaster && !buffer.has_master()) return;
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  if (own.count == 0) return;
  buffer.device().CopyAsync(State(buffer, own, kind), view.Range(own.segment_begin, own.count),
                            stream);
  stream.Synchronize();
}

}  // namespace filigree
