// Where each parameter lies in the flat buffers, how these are cut into buckets, and who owns what.
//
// Pure arithmetic on element counts. Parameter i is segment i, in order of creation (forward
// order). Segments of one traffic kind are packed, in that order, into buckets of about
// `bucket_elements` (a larger segment has a bucket of its own); norms lie between matrices in
// creation order, so kinds are packed apart. The weights of one product (of q, k and v, say, which
// may be read as one matrix where they lie side by side) share a bucket where they fit in one. In memory a bucket holds its segments group by group
// (the optimizer treats those of a group alike, in few launches). Each segment begins at a multiple
// of kSegmentAlignment, so quantisation blocks begin where parameters begin. A bucket is padded to
// a multiple of shards * kSegmentAlignment, and shard r owns slice r of every bucket. With ZeRO-0
// there is one shard: every rank owns everything.
#pragma once

#include <cstdint>
#include <vector>

namespace filigree {

inline constexpr int64_t kSegmentAlignment = 256;  // elements

// Sparsified and dense parameters travel in separate buckets: their bytes are counted apart.
enum class TrafficKind : uint8_t { kDense, kSparsified };

struct SegmentSpec {
  int64_t count = 0;  // stored elements
  TrafficKind kind = TrafficKind::kDense;
  int group = 0;
  // Segments of one product, which follow each other; -1: of none.
  int product = -1;
  // Segments whose gradients become final together (a layer's), from 0 in order of creation.
  int unit = 0;
};

struct Segment {
  int64_t offset = 0;  // elements from the start of the flat buffer
  int64_t count = 0;
  int bucket = 0;
};

struct Bucket {
  int64_t offset = 0;
  int64_t count = 0;          // padding included; a multiple of shards * kSegmentAlignment
  std::vector<int> segments;  // in order of creation
  TrafficKind kind = TrafficKind::kDense;
  int unit = 0;  // of its first segment
};

// A piece of one segment inside the slice that a shard owns.
struct OwnedRange {
  int segment = 0;
  int64_t segment_begin = 0;  // first element of the piece, counted from the segment's start
  int64_t flat_begin = 0;     // the same, counted from the start of the flat buffer
  int64_t shard_begin = 0;    // the same, counted from the start of the shard's own buffers
  int64_t count = 0;
};

class FlatLayout {
 public:
  FlatLayout() = default;
  // `shards`: 1 (ZeRO-0) or the number of ranks (ZeRO-1). `split_units`: no bucket holds segments
  // of two units, so that the buckets of a unit lie side by side.
  static FlatLayout Build(const std::vector<SegmentSpec>& specs, int shards,
                          int64_t bucket_elements, bool split_units = false);

  int shards() const { return shards_; }
  int64_t total_count() const { return total_count_; }  // padding included
  int64_t shard_count() const { return total_count_ / shards_; }
  const std::vector<Segment>& segments() const { return segments_; }
  // In order of their first segments.
  const std::vector<Bucket>& buckets() const { return buckets_; }

  // The slice of a bucket that a shard owns: offset in the flat buffer, and in the shard's own
  // buffers (which hold the slices of all buckets one after the other).
  struct Slice {
    int64_t flat_offset = 0, shard_offset = 0, count = 0;
  };
  Slice slice(int bucket, int shard) const;

  // The piece of a segment that a shard owns; its count may be 0.
  OwnedRange Owned(int segment, int shard) const;
  // All such pieces that are not empty, in order of memory.
  std::vector<OwnedRange> OwnedRanges(int shard) const;

 private:
  int shards_ = 1;
  int64_t total_count_ = 0;
  std::vector<Segment> segments_;
  std::vector<Bucket> buckets_;
};

}  // namespace filigree
