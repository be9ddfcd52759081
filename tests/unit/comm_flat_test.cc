// Flat layouts and buffers: every stored element lies in one place and has one owner.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "comm/flat_buffer.h"
#include "comm/mpi_communicator.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

// Sizes around the alignment, an empty segment, one larger than a bucket, both kinds mixed.
std::vector<SegmentSpec> MixedSegments() {
  constexpr auto kDense = TrafficKind::kDense, kSparsified = TrafficKind::kSparsified;
  return {{1, kDense},   {255, kSparsified}, {256, kDense},      {257, kSparsified},
          {0, kDense},   {3000, kDense},     {700, kSparsified}, {1, kSparsified},
          {511, kDense}, {900, kSparsified}};
}

void ExpectEachElementOwnedOnce(const FlatLayout& layout, const std::vector<SegmentSpec>& specs) {
  for (size_t i = 0; i < specs.size(); ++i) {
    std::vector<int> owners(specs[i].count, 0);
    for (int shard = 0; shard < layout.shards(); ++shard) {
      const OwnedRange range = layout.Owned(static_cast<int>(i), shard);
      for (int64_t k = 0; k < range.count; ++k) {
        ++owners[range.segment_begin + k];
        EXPECT_LT(range.shard_begin + k, layout.shard_count());
      }
      if (range.count == 0) continue;
      EXPECT_EQ(range.flat_begin, layout.segments()[i].offset + range.segment_begin);
    }
    EXPECT_EQ(owners, std::vector<int>(specs[i].count, 1)) << "segment " << i;
  }
}

TEST(FlatLayoutTest, EveryElementHasOnePlaceAndOneOwner) {
  const std::vector<SegmentSpec> specs = MixedSegments();
  for (int shards : {1, 2, 3, 4, 7}) {
    for (int64_t bucket_elements : {1, 1024, 1 << 20}) {
      const FlatLayout layout = FlatLayout::Build(specs, shards, bucket_elements);
      int64_t end = 0;
      std::vector<int> seen(specs.size(), 0);
      for (size_t b = 0; b < layout.buckets().size(); ++b) {
        const Bucket& bucket = layout.buckets()[b];
        EXPECT_EQ(bucket.offset, end);
        EXPECT_EQ(bucket.count % (shards * kSegmentAlignment), 0);
        int64_t inside = bucket.offset;
        for (int segment : bucket.segments) {
          const Segment& s = layout.segments()[segment];
          EXPECT_EQ(specs[segment].kind, bucket.kind);
          EXPECT_EQ(s.bucket, static_cast<int>(b));
          EXPECT_EQ(s.count, specs[segment].count);
          EXPECT_EQ(s.offset % kSegmentAlignment, 0);
          EXPECT_GE(s.offset, inside);
          inside = s.offset + s.count;
          ++seen[segment];
        }
        end = bucket.offset + bucket.count;
        EXPECT_LE(inside, end);
      }
      EXPECT_EQ(end, layout.total_count());
      EXPECT_EQ(seen, std::vector<int>(specs.size(), 1));
      ExpectEachElementOwnedOnce(layout, specs);
    }
  }
}

TEST(FlatLayoutTest, GroupsLieTogetherInTheirBucket) {
  constexpr auto kDense = TrafficKind::kDense;
  // As a model creates them: matrices, which decay, and biases, which do not, in turns.
  const FlatLayout layout = FlatLayout::Build(
      {{512, kDense, 0}, {100, kDense, 1}, {512, kDense, 0}, {100, kDense, 1}, {512, kDense, 0}},
      /*shards=*/1, /*bucket_elements=*/1600);
  ASSERT_EQ(layout.buckets().size(), 2u);
  EXPECT_EQ(layout.buckets()[0].segments, (std::vector<int>{0, 1, 2, 3}));  // creation
  const auto offset = [&](int segment) { return layout.segments()[segment].offset; };
  EXPECT_EQ((std::vector<int64_t>{offset(0), offset(2), offset(1), offset(3), offset(4)}),
            (std::vector<int64_t>{0, 512, 1024, 1280, 1536}));
  std::vector<int> memory_order;
  for (const OwnedRange& range : layout.OwnedRanges(0)) memory_order.push_back(range.segment);
  EXPECT_EQ(memory_order, (std::vector<int>{0, 2, 1, 3, 4}));
}

// q, k and v of a GPT-2 layer beside others: together where a bucket holds them, each where there
// is room otherwise.
TEST(FlatLayoutTest, ProductsShareABucketWhereTheyFit) {
  constexpr auto kDense = TrafficKind::kDense, kSparsified = TrafficKind::kSparsified;
  std::vector<SegmentSpec> specs = {{.count = 768, .kind = kDense, .group = 1}};
  for (int part = 0; part < 3; ++part) {
    specs.push_back({.count = 1024, .kind = kDense, .group = 0, .product = 1});
    specs.push_back({.count = 256, .kind = kDense, .group = 1, .product = 1});
  }
  specs.push_back({.count = 1024, .kind = kDense, .group = 0});
  const auto buckets = [&](int64_t elements) {
    std::vector<int> of_segment;
    const FlatLayout layout = FlatLayout::Build(specs, /*shards=*/2, elements);
    for (const Segment& s : layout.segments()) of_segment.push_back(s.bucket);
    return of_segment;
  };
  // 768 elements and the three parts' 3,840 are more than 4,000: a bucket ends before them.
  EXPECT_EQ(buckets(4000), (std::vector<int>{0, 1, 1, 1, 1, 1, 1, 2}));
  EXPECT_EQ(buckets(5000), (std::vector<int>{0, 0, 0, 0, 0, 0, 0, 1}));
  // The parts together are larger than a bucket: as if they had nothing in common.
  EXPECT_EQ(buckets(3000), (std::vector<int>{0, 0, 0, 1, 1, 1, 1, 2}));
  const FlatLayout layout = FlatLayout::Build(specs, /*shards=*/2, /*bucket_elements=*/4000);
  const auto offset = [&](int segment) { return layout.segments()[segment].offset; };
  EXPECT_EQ(offset(3) - offset(1), 1024);
  EXPECT_EQ(offset(5) - offset(1), 2048);
  EXPECT_EQ(offset(4) - offset(2), 256);
  // Each kind by itself: the part that is sparsified travels apart from the others.
  specs[3].kind = kSparsified;
  EXPECT_EQ(buckets(2900), (std::vector<int>{0, 1, 1, 2, 1, 1, 1, 3}));
}

// On every rank: what was scattered is gathered again, and only the own shard was kept.
TEST(FlatBufferTest, ScatterThenGatherIsTheWhole) {
  const auto communicator = MakeMpiCommunicator();
  CpuDevice device;
  const auto stream = device.NewStream();
  const std::vector<SegmentSpec> specs = MixedSegments();
  for (bool sharded : {false, true}) {
    const FlatLayout layout = FlatLayout::Build(specs, sharded ? communicator->size() : 1, 1024);
    FlatBuffer buffer(device, layout, sharded ? communicator->rank() : 0, DType::kF32, DType::kF32,
                      *stream);
    EXPECT_EQ(device.memory_usage().bytes_by_kind.at("moments"),
              2 * sizeof(float) * static_cast<size_t>(layout.shard_count()));
    for (StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      for (size_t i = 0; i < specs.size(); ++i) {
        const int segment = static_cast<int>(i);
        std::vector<float> whole(specs[i].count);
        for (size_t k = 0; k < whole.size(); ++k) {
          whole[k] = static_cast<float>(k + 1000 * i) + 0.25f * static_cast<float>(kind);
        }
        const std::span<const std::byte> bytes = std::as_bytes(std::span<const float>(whole));
        ScatterSegment(buffer, segment, kind, bytes, *stream);
        const std::vector<std::byte> found =
            GatherSegment(buffer, segment, kind, *communicator, *stream);
        EXPECT_TRUE(std::equal(found.begin(), found.end(), bytes.begin(), bytes.end()))
            << "segment " << i;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
