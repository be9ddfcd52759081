// Gathering and scattering the state of one segment: between the form in which it is held and plain
// numbers on the host.
#include <algorithm>
#include <vector>

#include "comm/flat_buffer.h"
#include "kernels/base/check.h"

namespace filigree {
namespace {

// The values that compute reads, from the master's: rounded where their dtype is narrower.
void WriteValues(FlatBuffer& buffer, int segment, ConstTensorView master, Stream& stream) {
  const TensorView values = buffer.Values(segment);
  std::vector<float> as_bf16;
  if (buffer.format().bf16 && values.dtype() == DType::kF32) {
    const float* source = master.As<float>();
    as_bf16.assign(source, source + values.size());
    for (float& value : as_bf16) value = static_cast<float>(BFloat16(value));
    master = ConstTensorView(as_bf16.data(), DType::kF32, {values.size()});
  }
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

template <typename T>
TensorView ViewOf(std::vector<T>& host) {
  return TensorView(host.data(), DTypeOf<T>::value, {static_cast<int64_t>(host.size())});
}

// The piece as numbers in host memory `to` of the master's dtype.
void ReadPiece(Device& device, const HeldPiece& piece, TensorView to, Stream& stream) {
  const int64_t count = to.size();
  if (piece.elements.dtype() == to.dtype()) {
    device.CopyAsync(to, piece.elements, stream);
    stream.Synchronize();
  } else if (piece.elements.dtype() == DType::kBF16) {
    std::vector<BFloat16> host(count);
    device.CopyAsync(ViewOf(host), piece.elements, stream);
    stream.Synchronize();
    std::ranges::transform(host, to.As<float>(), [](BFloat16 x) { return static_cast<float>(x); });
  } else {
    std::vector<uint8_t> codes(count);
    std::vector<float> scales(piece.scales.size());
    device.CopyAsync(ViewOf(codes), piece.elements, stream);
    device.CopyAsync(ViewOf(scales), piece.scales, stream);
    stream.Synchronize();
    DequantizeBlocks(piece.map, codes.data(), scales.data(), count, to.As<float>());
  }
}

// The inverse.
void WritePiece(Device& device, ConstTensorView from, const HeldPiece& piece, Stream& stream) {
  const int64_t count = from.size();
  if (piece.elements.dtype() == from.dtype()) {
    device.CopyAsync(piece.elements, from, stream);
    stream.Synchronize();
  } else if (piece.elements.dtype() == DType::kBF16) {
    const float* numbers = from.As<float>();
    std::vector<BFloat16> host(count);
    std::transform(numbers, numbers + count, host.begin(), [](float x) { return BFloat16(x); });
    device.CopyAsync(piece.elements, ViewOf(host), stream);
    stream.Synchronize();
  } else {
    std::vector<uint8_t> codes(count);
    std::vector<float> scales(piece.scales.size());
    QuantizeBlocks(piece.map, from.As<float>(), count, codes.data(), scales.data());
    device.CopyAsync(piece.elements, ViewOf(codes), stream);
    device.CopyAsync(piece.scales, ViewOf(scales), stream);
    stream.Synchronize();
  }
}

}  // namespace

HeldPiece Held(const FlatBuffer& buffer, const OwnedRange& range, StateKind kind) {
  switch (kind) {
    case StateKind::kMaster:
      return {buffer.Master(range), {}};
    case StateKind::kM: {
      const MomentViews moments = buffer.Moments(range);
      return {moments.m, moments.m_scale, QuantizationMap::kSigned};
    }
    case StateKind::kV: {
      const MomentViews moments = buffer.Moments(range);
      return {moments.v, moments.v_scale, QuantizationMap::kUnsigned};
    }
    case StateKind::kBorn:
      return {buffer.Born(range), {}};
  }
  CHECK(false) << "state kind " << static_cast<int>(kind);
}

void BroadcastPieces(const FlatBuffer& buffer, int segment, TensorView whole,
                     Communicator& communicator, Stream& stream) {
  const std::unique_ptr<Event> ready = buffer.device().NewEvent();
  ready->Record(stream);
  for (int shard = 0; shard < buffer.layout().shards(); ++shard) {
    const OwnedRange range = buffer.layout().Owned(segment, shard);
    if (range.count == 0) continue;
    communicator.Broadcast(whole.Range(range.segment_begin, range.count), shard, *ready)
        ->Wait(stream);
  }
}

std::vector<std::byte> GatherSegment(const FlatBuffer& buffer, int segment, StateKind kind,
                                     Communicator& communicator, Stream& stream) {
  const int64_t count = buffer.layout().segments()[segment].count;
  std::vector<std::byte> bytes(static_cast<size_t>(count) * SizeOf(buffer.master_dtype()));
  const TensorView whole(bytes.data(), buffer.master_dtype(), {count});
  const int shards = buffer.layout().shards();
  CHECK(shards == 1 || shards == communicator.size()) << shards << " shards";
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  if (own.count > 0) {
    ReadPiece(buffer.device(), Held(buffer, own, kind), whole.Range(own.segment_begin, own.count),
              stream);
  }
  if (shards > 1) BroadcastPieces(buffer, segment, whole, communicator, stream);
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
  WritePiece(buffer.device(), view.Range(own.segment_begin, own.count), Held(buffer, own, kind),
             stream);
}

}  // namespace filigree
