#include "comm/flat_buffer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

DType MasterDType(DType value_dtype) {
  return value_dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

DeviceBuffer AllocateZeroed(Device& device, DType dtype, int64_t count, const char* kind,
                            Stream& stream, Communicator* ranks = nullptr) {
  const size_t bytes = static_cast<size_t>(count) * SizeOf(dtype);
  DeviceBuffer buffer =
      ranks ? ranks->Allocate(device, bytes, kind) : device.Allocate(bytes, kind);
  device.ZeroAsync(buffer.View(dtype, count), stream);
  return buffer;
}

int64_t Blocks(int64_t count) { return CeilDiv(count, kQuantizationBlock); }

// Elements of the segments that keep whole moments beside codes.
int64_t SmallCount(const FlatLayout& layout) {
  int64_t count = 0;
  for (const Segment& segment : layout.segments()) {
    if (segment.count < kSmallestQuantized) count += AlignUp(segment.count, kSegmentAlignment);
  }
  return count;
}

// Where the gradients of each bucket begin in their memory, and its size.
struct GradientPlaces {
  std::vector<int64_t> begin;
  int64_t count = 0;
};

GradientPlaces PlaceGradients(const FlatLayout& layout, GradientSlots slots) {
  GradientPlaces places;
  const std::vector<Bucket>& buckets = layout.buckets();
  for (const Bucket& bucket : buckets) places.begin.push_back(bucket.offset);
  places.count = layout.total_count();
  if (slots.count == 0 || buckets.empty()) return places;
  const int last = buckets.back().unit;
  std::vector<int64_t> unit_begin(last + 1, -1), unit_count(last + 1, 0);
  for (const Bucket& bucket : buckets) {
    if (unit_begin[bucket.unit] < 0) unit_begin[bucket.unit] = bucket.offset;
    unit_count[bucket.unit] = bucket.offset + bucket.count - unit_begin[bucket.unit];
  }
  const int64_t slot = *std::max_element(unit_count.begin(), unit_count.end());
  for (size_t i = 0; i < buckets.size(); ++i) {
    const int unit = buckets[i].unit;
    const int place = (last - unit) % slots.count;
    places.begin[i] = place * slot + buckets[i].offset - unit_begin[unit];
  }
  places.count = slots.count * slot;
  return places;
}

// `count` elements of a buffer, from element `begin` on.
TensorView Elements(const DeviceBuffer& buffer, DType dtype, int64_t begin, int64_t count) {
  return buffer.View(dtype, count, static_cast<size_t>(begin) * SizeOf(dtype));
}

}  // namespace

StateBytes PredictStateBytes(const FlatLayout& layout, DType value_dtype, DType grad_dtype,
                             StateFormat format, GradientSlots slots, bool born) {
  const auto bytes = [](int64_t count, DType dtype) {
    return count * static_cast<int64_t>(SizeOf(dtype));
  };
  const DType master = MasterDType(value_dtype);
  const DType moment = format.bf16 ? DType::kBF16 : master;
  const int64_t own = layout.shard_count();
  StateBytes state;
  state.values = bytes(layout.total_count(), value_dtype);
  state.grads = bytes(PlaceGradients(layout, slots).count, grad_dtype);
  if (value_dtype != master && !format.bf16) state.master = bytes(own, master);
  state.moments = 2 * bytes(format.eight_bit_moments ? SmallCount(layout) : own, moment);
  if (format.eight_bit_moments) {
    state.moments += 2 * (bytes(own, DType::kU8) + bytes(Blocks(own), DType::kF32));
  }
  if (born) state.moments += bytes(own, master);
  return state;
}

FlatBuffer::FlatBuffer(Device& device, FlatLayout layout, int shard, DType value_dtype,
                       DType grad_dtype, Stream& stream, StateFormat format, GradientSlots slots,
                       Communicator* ranks)
    : FlatBuffer(ValuesOnly(device, std::move(layout), value_dtype, stream, ranks)) {
  CHECK(shard >= 0 && shard < layout_.shards()) << "shard " << shard << " of " << layout_.shards();
  CHECK(format == StateFormat() || value_dtype != DType::kF64) << "F64 state is whole";
  shard_ = shard;
  format_ = format;
  slots_ = slots;
  owned_ = layout_.OwnedRanges(shard);
  GradientPlaces places = PlaceGradients(layout_, slots);
  grads_begin_ = std::move(places.begin);
  grads_buffer_ = AllocateZeroed(device, grad_dtype, places.count, "grads", stream, ranks);
  grads_ = grads_buffer_.View(grad_dtype, places.count);
  if (value_dtype != master_dtype_ && !format.bf16) {
    master_ = AllocateZeroed(device, master_dtype_, layout_.shard_count(), "master", stream);
  }
  AllocateMoments(stream);
}

void FlatBuffer::AllocateMoments(Stream& stream) {
  const int64_t own = layout_.shard_count();
  const auto allocate = [&](DType dtype, int64_t count) {
    return AllocateZeroed(*device_, dtype, count, "moments", stream);
  };
  const int64_t whole = format_.eight_bit_moments ? SmallCount(layout_) : own;
  m_ = allocate(moment_dtype(), whole);
  v_ = allocate(moment_dtype(), whole);
  if (!format_.eight_bit_moments) return;
  m_codes_ = allocate(DType::kU8, own);
  v_codes_ = allocate(DType::kU8, own);
  m_scales_ = allocate(DType::kF32, Blocks(own));
  v_scales_ = allocate(DType::kF32, Blocks(own));
  int64_t begin = 0;
  for (size_t i = 0; i < layout_.segments().size(); ++i) {
    small_begin_.push_back(begin);
    const int64_t count = layout_.segments()[i].count;
    if (!quantized(static_cast<int>(i))) begin += AlignUp(count, kSegmentAlignment);
  }
}

FlatBuffer FlatBuffer::ValuesOnly(Device& device, FlatLayout layout, DType value_dtype,
                                  Stream& stream, Communicator* ranks) {
  FlatBuffer buffer;
  buffer.device_ = &device;
  buffer.layout_ = std::move(layout);
  buffer.master_dtype_ = MasterDType(value_dtype);
  const int64_t total = buffer.layout_.total_count();
  buffer.values_buffer_ = AllocateZeroed(device, value_dtype, total, "values", stream, ranks);
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
  const int64_t inside = s.offset - layout_.buckets()[s.bucket].offset;
  return grads_.Range(grads_begin_[s.bucket] + inside, s.count);
}

TensorView FlatBuffer::BucketGrads(int bucket) const {
  return grads_.Range(grads_begin_[bucket], layout_.buckets()[bucket].count);
}

TensorView FlatBuffer::Grads(const OwnedRange& range) const {
  const int bucket = layout_.segments()[range.segment].bucket;
  const int64_t inside = range.flat_begin - layout_.buckets()[bucket].offset;
  return grads_.Range(grads_begin_[bucket] + inside, range.count);
}

TensorView FlatBuffer::Master(const OwnedRange& range) const {
  if (!has_master()) return values_.Range(range.flat_begin, range.count);
  return Elements(master_, master_dtype_, range.shard_begin, range.count);
}

int64_t FlatBuffer::SmallBegin(const OwnedRange& range) const {
  return small_begin_[range.segment] + range.segment_begin;
}

MomentViews FlatBuffer::Moments(const OwnedRange& range) const {
  if (!quantized(range.segment)) {
    const int64_t begin = format_.eight_bit_moments ? SmallBegin(range) : range.shard_begin;
    return {.m = Elements(m_, moment_dtype(), begin, range.count),
            .v = Elements(v_, moment_dtype(), begin, range.count)};
  }
  // Segments and shards begin at multiples of the alignment.
  static_assert(kSegmentAlignment == kQuantizationBlock);
  const int64_t block = range.shard_begin / kQuantizationBlock, blocks = Blocks(range.count);
  return {.m = Elements(m_codes_, DType::kU8, range.shard_begin, range.count),
          .v = Elements(v_codes_, DType::kU8, range.shard_begin, range.count),
          .m_scale = Elements(m_scales_, DType::kF32, block, blocks),
          .v_scale = Elements(v_scales_, DType::kF32, block, blocks)};
}

TensorView FlatBuffer::Born(const OwnedRange& range) const {
  if (!has_born()) return TensorView();
  return Elements(born_, master_dtype_, range.shard_begin, range.count);
}

void FlatBuffer::AllocateBorn(Stream& stream) {
  born_ = AllocateZeroed(*device_, master_dtype_, layout_.shard_count(), "moments", stream);
}

}  // namespace filigree
