#include "trainer/device_segments.h"

#include <algorithm>

namespace filigree {
namespace {

void Copy(Device& device, TensorView to, ConstTensorView from, Stream& stream) {
  if (to.data() != from.data()) device.CopyAsync(to, from, stream);
}

// The piece as numbers of F32.
void Read(const HeldPiece& piece, TensorView to, Backend& backend, Stream& stream) {
  switch (piece.elements.dtype()) {
    case DType::kBF16:
      return backend.Widen({.in = piece.elements, .out = to}, stream);
    case DType::kU8:
      return backend.Dequantize(
          {.map = piece.map, .codes = piece.elements, .scales = piece.scales, .out = to}, stream);
    default:
      return Copy(backend.device(), to, piece.elements, stream);
  }
}

void Write(ConstTensorView from, const HeldPiece& piece, Backend& backend, Stream& stream) {
  switch (piece.elements.dtype()) {
    case DType::kBF16:
      return backend.Round({.in = from, .out = piece.elements}, stream);
    case DType::kU8:
      return backend.Quantize(
          {.map = piece.map, .in = from, .codes = piece.elements, .scales = piece.scales}, stream);
    default:
      return Copy(backend.device(), piece.elements, from, stream);
  }
}

}  // namespace

bool RoundsThroughHalves(const FlatBuffer& buffer) {
  return buffer.format().bf16 && buffer.values().dtype() == DType::kF32;
}

bool HoldsWhole(const FlatBuffer& buffer, int segment, StateKind kind) {
  if (buffer.layout().shards() > 1) return false;
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  return own.count == 0 || Held(buffer, own, kind).elements.dtype() == DType::kF32;
}

ConstTensorView GatherOnDevice(const FlatBuffer& buffer, int segment, StateKind kind,
                               TensorView memory, Communicator& communicator, Backend& backend,
                               Stream& stream) {
  CHECK(buffer.master_dtype() == DType::kF32) << NameOf(buffer.master_dtype());
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  if (HoldsWhole(buffer, segment, kind)) {
    return own.count == 0 ? ConstTensorView() : Held(buffer, own, kind).elements;
  }
  CHECK_EQ(memory.size(), buffer.layout().segments()[segment].count);
  if (own.count > 0) {
    Read(Held(buffer, own, kind), memory.Range(own.segment_begin, own.count), backend, stream);
  }
  if (buffer.layout().shards() > 1) {
    BroadcastPieces(buffer, segment, memory, communicator, stream);
  }
  return memory;
}

void ScatterOnDevice(FlatBuffer& buffer, int segment, StateKind kind, ConstTensorView part,
                     TensorView halves, Backend& backend, Stream& stream, int64_t begin) {
  if (part.empty()) return;
  CHECK_EQ(begin % kQuantizationBlock, 0);
  if (kind == StateKind::kMaster) {
    const TensorView values = buffer.Values(segment).Range(begin, part.size());
    if (RoundsThroughHalves(buffer)) {
      backend.Round({.in = part, .out = halves}, stream);
      backend.Widen({.in = halves, .out = values}, stream);
    } else if (values.dtype() == DType::kBF16) {
      backend.Round({.in = part, .out = values}, stream);
    } else {
      Copy(backend.device(), values, part, stream);
    }
    if (!buffer.has_master()) return;
  }
  OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  const int64_t end = std::min(own.segment_begin + own.count, begin + part.size());
  const int64_t skipped = std::max<int64_t>(0, begin - own.segment_begin);
  own.segment_begin += skipped;
  own.flat_begin += skipped;
  own.shard_begin += skipped;
  own.count = end - own.segment_begin;
  if (own.count <= 0) return;
  Write(part.Range(own.segment_begin - begin, own.count), Held(buffer, own, kind), backend, stream);
}

}  // namespace filigree
