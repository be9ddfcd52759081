// One order of addition at any number of ranks. Runs under mpirun at several.
#include "trainer/sample_tree.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "data/data_loader.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

constexpr int64_t kFloats = 37, kDoubles = 3;

// Of magnitudes so different that every order of addition rounds in its own way.
double Value(int64_t sample, int64_t element) {
  const auto s = static_cast<uint64_t>(sample), e = static_cast<uint64_t>(element);
  return RandomNormal(5, s, e) * static_cast<double>(int64_t{1} << RandomBelow(6, s, e, 20));
}

template <typename T>
T Leaf(int64_t sample, int64_t element) {
  return static_cast<T>(Value(sample, element));
}

// The definition: the node of `level` that begins at `first`, cut at `samples`.
template <typename T>
T Node(int64_t first, int level, int64_t samples, int64_t element) {
  if (level == 0) return Leaf<T>(first, element);
  const int64_t middle = first + (int64_t{1} << (level - 1));
  const T left = Node<T>(first, level - 1, samples, element);
  return middle < samples ? left + Node<T>(middle, level - 1, samples, element) : left;
}

TEST(SampleTreeTest, TheSumIsTheTreesAtAnyNumberOfRanks) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  CpuDevice device;
  const auto stream = device.NewStream();
  bool order_matters = false;
  for (int64_t samples = 1; samples <= 19; ++samples) {
    std::vector<float> floats(kFloats, 0);
    std::vector<double> doubles(kDoubles, 0);
    SampleTree tree(device,
                    {TensorView(floats.data(), DType::kF32, {kFloats}),
                     TensorView(doubles.data(), DType::kF64, {kDoubles})},
                    samples, *world);
    const SampleRange mine = PartitionSamples(samples, world->rank(), world->size());
    for (int64_t sample = mine.begin; sample < mine.begin + mine.count; ++sample) {
      for (int64_t i = 0; i < kFloats; ++i) {
        ASSERT_EQ(floats[i], 0) << "the sample before was not taken away";
        floats[i] += Leaf<float>(sample, i);
      }
      for (int64_t i = 0; i < kDoubles; ++i) doubles[i] += Leaf<double>(sample, i);
      tree.TakeSample(*stream);
    }
    tree.Complete(*stream);
    for (int64_t i = 0; i < kFloats; ++i) {
      ASSERT_EQ(floats[i], Node<float>(0, 5, samples, i)) << samples << " samples, element " << i;
      float in_order = 0;
      for (int64_t sample = 0; sample < samples; ++sample) in_order += Leaf<float>(sample, i);
      order_matters |= in_order != floats[i];
    }
    for (int64_t i = 0; i < kDoubles; ++i) {
      ASSERT_EQ(doubles[i], Node<double>(0, 5, samples, i)) << samples << " samples";
    }
  }
  EXPECT_TRUE(order_matters) << "any sum would pass this test";
}

TEST(SampleTreeTest, NodesSent) {
  EXPECT_EQ(SampleTree::NodesSent(16, 1), 0);
  for (const int ranks : {2, 4, 8, 16}) EXPECT_EQ(SampleTree::NodesSent(16, ranks), ranks);
  // 0 1 2 3 | 4 5 6: a node of four; one of two and one.
  EXPECT_EQ(SampleTree::NodesSent(7, 2), 3);
  // 0 1 | 2: a rank without samples sends nothing.
  EXPECT_EQ(SampleTree::NodesSent(2, 5), 2);
}

TEST(SampleTreeTest, HoldsNoMoreThanItSays) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  for (const int64_t samples : {1, 7, 64, 100}) {
    CpuDevice device;
    const auto stream = device.NewStream();
    std::vector<float> sum(kFloats, 0);
    SampleTree tree(device, {TensorView(sum.data(), DType::kF32, {kFloats})}, samples, *world);
    const SampleRange mine = PartitionSamples(samples, world->rank(), world->size());
    for (int64_t i = 0; i < mine.count; ++i) tree.TakeSample(*stream);
    tree.Complete(*stream);
    EXPECT_LE(device.memory_usage().peak_bytes,
              static_cast<size_t>(SampleTree::NodesHeld(samples)) * kFloats * sizeof(float));
  }
}

}  // namespace
}  // namespace filigree
