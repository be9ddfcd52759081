#include "comm/flat_layout.h"

#include <algorithm>
#include <array>

#include "kernels/base/check.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

// Elements for which a bucket must have room if segment `i` is to go into it: the first segment of
// a product asks for all of its kind, if one bucket holds them.
int64_t RoomFor(const std::vector<SegmentSpec>& specs, size_t i, int64_t bucket_elements) {
  const int64_t own = AlignUp(specs[i].count, kSegmentAlignment);
  if (specs[i].product < 0) return own;
  size_t j = i;
  while (j > 0 && specs[j - 1].product == specs[i].product) --j;
  int64_t all = 0;
  for (; j < specs.size() && specs[j].product == specs[i].product; ++j) {
    if (specs[j].kind != specs[i].kind) continue;
    if (j < i) return own;
    all += AlignUp(specs[j].count, kSegmentAlignment);
  }
  return all <= bucket_elements ? all : own;
}

// Which segments share a bucket, kind by kind; buckets in order of their first segments.
std::vector<Bucket> GroupSegments(const std::vector<SegmentSpec>& specs, int64_t bucket_elements,
                                  bool split_units) {
  std::vector<Bucket> buckets;
  std::array<int, 2> open = {-1, -1};  // the bucket that a kind is filling
  std::array<int64_t, 2> filled = {0, 0};
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto kind = static_cast<size_t>(specs[i].kind);
    const int64_t room = RoomFor(specs, i, bucket_elements);
    const bool other_unit =
        split_units && open[kind] >= 0 && buckets[open[kind]].unit != specs[i].unit;
    if (open[kind] < 0 || other_unit || filled[kind] + room > bucket_elements) {
      open[kind] = static_cast<int>(buckets.size());
      filled[kind] = 0;
      Bucket& bucket = buckets.emplace_back();
      bucket.kind = specs[i].kind;
      bucket.unit = specs[i].unit;
    }
    buckets[open[kind]].segments.push_back(static_cast<int>(i));
    filled[kind] += AlignUp(specs[i].count, kSegmentAlignment);
  }
  return buckets;
}

// A bucket's segments as they lie in memory.
std::vector<int> MemoryOrder(const std::vector<int>& segments,
                             const std::vector<SegmentSpec>& specs) {
  std::vector<int> order = segments;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return specs[a].group < specs[b].group; });
  return order;
}

}  // namespace

FlatLayout FlatLayout::Build(const std::vector<SegmentSpec>& specs, int shards,
                             int64_t bucket_elements, bool split_units) {
  CHECK_GE(shards, 1);
  FlatLayout layout;
  layout.shards_ = shards;
  layout.segments_.resize(specs.size());
  layout.buckets_ = GroupSegments(specs, bucket_elements, split_units);
  int64_t offset = 0;
  for (size_t b = 0; b < layout.buckets_.size(); ++b) {
    Bucket& bucket = layout.buckets_[b];
    bucket.offset = offset;
    for (int i : MemoryOrder(bucket.segments, specs)) {
      CHECK_GE(specs[i].count, 0);
      layout.segments_[i] = {
          .offset = offset, .count = specs[i].count, .bucket = static_cast<int>(b)};
      offset += AlignUp(specs[i].count, kSegmentAlignment);
    }
    bucket.count = AlignUp(offset - bucket.offset, shards * kSegmentAlignment);
    offset = bucket.offset + bucket.count;
  }
  layout.total_count_ = offset;
  return layout;
}

FlatLayout::Slice FlatLayout::slice(int bucket, int shard) const {
  CHECK(shard >= 0 && shard < shards_) << "shard " << shard << " of " << shards_;
  const Bucket& b = buckets_[bucket];
  const int64_t count = b.count / shards_;
  // The buckets before this one are multiples of the shards too.
  return {
      .flat_offset = b.offset + shard * count, .shard_offset = b.offset / shards_, .count = count};
}

OwnedRange FlatLayout::Owned(int segment, int shard) const {
  const Segment& s = segments_[segment];
  const Slice own = slice(s.bucket, shard);
  const int64_t begin = std::max(s.offset, own.flat_offset);
  const int64_t end = std::min(s.offset + s.count, own.flat_offset + own.count);
  OwnedRange range;
  range.segment = segment;
  if (begin >= end) return range;
  range.segment_begin = begin - s.offset;
  range.flat_begin = begin;
  range.shard_begin = own.shard_offset + begin - own.flat_offset;
  range.count = end - begin;
  return range;
}

std::vector<OwnedRange> FlatLayout::OwnedRanges(int shard) const {
  std::vector<OwnedRange> ranges;
  for (const Bucket& bucket : buckets_) {
    for (int segment : bucket.segments) {
      const OwnedRange range = Owned(segment, shard);
      if (range.count > 0) ranges.push_back(range);
    }
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const OwnedRange& a, const OwnedRange& b) { return a.flat_begin < b.flat_begin; });
  return ranges;
}

}  // namespace filigree
