// The communicator's promises, on inputs whose results are known exactly: every collective, in
// place and out of place, whole and split into several calls, at any number of ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "comm/mpi_communicator.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

// Element i of rank r's input: whole numbers, and no two ranks alike.
template <typename T>
std::vector<T> Input(int rank, int64_t count) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<T>(static_cast<float>((i * 7 + rank * 3) % 11 - 4)));
  }
  return values;
}

template <typename T>
std::vector<T> Reduced(int ranks, int64_t count, ReduceOp op) {
  std::vector<T> result = Input<T>(0, count);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<T> other = Input<T>(rank, count);
    for (int64_t i = 0; i < count; ++i) {
      const auto a = static_cast<float>(result[i]), b = static_cast<float>(other[i]);
      const float sum = a + b, least = std::min(a, b), most = std::max(a, b);
      result[i] = static_cast<T>(op == ReduceOp::kSum ? sum : op == ReduceOp::kMin ? least : most);
    }
  }
  return result;
}

template <typename T>
TensorView View(std::vector<T>& values) {
  return TensorView(values.data(), DTypeOf<T>::value, {static_cast<int64_t>(values.size())});
}

template <typename T>
std::vector<float> Floats(const std::vector<T>& values) {
  std::vector<float> floats;
  for (const T& value : values) floats.push_back(static_cast<float>(value));
  return floats;
}

// With a limit of 5 elements a call, everything below takes several calls.
class CollectivesTest : public ::testing::TestWithParam<int64_t> {
 protected:
  CollectivesTest() { ready_->Record(*stream_); }

  template <typename T>
  void ExpectAllReduce(ReduceOp op) {
    for (int64_t count : {1, 5, 17, 131}) {
      std::vector<T> values = Input<T>(rank(), count);
      communicator_->AllReduce(View(values), op, *ready_)->Wait(*stream_);
      EXPECT_EQ(Floats(values), Floats(Reduced<T>(size(), count, op))) << count << " elements";
    }
  }
  int rank() const { return communicator_->rank(); }
  int size() const { return communicator_->size(); }
  // This rank's n elements of `whole`.
  std::vector<float> Own(const std::vector<float>& whole, int64_t n) const {
    return {whole.begin() + rank() * n, whole.begin() + (rank() + 1) * n};
  }

  CpuDevice device_;
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  std::unique_ptr<Event> ready_ = device_.NewEvent();
  std::unique_ptr<Communicator> communicator_ = MakeMpiCommunicator(GetParam());
};

TEST_P(CollectivesTest, AllReduce) {
  for (ReduceOp op : {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax}) {
    ExpectAllReduce<float>(op);
    ExpectAllReduce<double>(op);
    ExpectAllReduce<int64_t>(op);
  }
  ExpectAllReduce<BFloat16>(ReduceOp::kSum);
}

TEST_P(CollectivesTest, ReduceScatterIntoTheOwnSliceAndApart) {
  for (int64_t n : {1, 5, 256}) {
    const std::vector<float> sum = Reduced<float>(size(), n * size(), ReduceOp::kSum);
    std::vector<float> in = Input<float>(rank(), n * size()), out(n);
    communicator_->ReduceScatter(View(in), View(out), ReduceOp::kSum, *ready_)->Wait(*stream_);
    EXPECT_EQ(out, Own(sum, n));
    in = Input<float>(rank(), n * size());
    const TensorView slice = View(in).Range(rank() * n, n);
    communicator_->ReduceScatter(View(in), slice, ReduceOp::kSum, *ready_)->Wait(*stream_);
    EXPECT_EQ(Own(in, n), Own(sum, n));
  }
}

TEST_P(CollectivesTest, AllGatherFromTheOwnSliceAndApart) {
  for (int64_t n : {1, 5, 256}) {
    std::vector<float> expected;
    for (int r = 0; r < size(); ++r) {
      const std::vector<float> part = Input<float>(r, n);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    std::vector<float> in = Input<float>(rank(), n), out(n * size(), -99);
    communicator_->AllGather(View(in), View(out), *ready_)->Wait(*stream_);
    EXPECT_EQ(out, expected);
    std::fill(out.begin(), out.end(), -99);
    const TensorView slice = View(out).Range(rank() * n, n);
    std::copy(in.begin(), in.end(), slice.As<float>());
    communicator_->AllGather(slice, View(out), *ready_)->Wait(*stream_);
    EXPECT_EQ(out, expected);
  }
}

// Several collectives under way at once, waited for in another order: buckets do this.
TEST_P(CollectivesTest, ManyUnderWay) {
  std::vector<std::vector<float>> buffers;
  std::vector<std::unique_ptr<Work>> works;
  for (int64_t i = 0; i < 6; ++i) buffers.push_back(Input<float>(rank(), 100 + i));
  for (auto& buffer : buffers) {
    works.push_back(communicator_->AllReduce(View(buffer), ReduceOp::kSum, *ready_));
  }
  for (size_t i = works.size(); i-- > 0;) works[i]->Wait(*stream_);
  for (const auto& buffer : buffers) {
    EXPECT_EQ(buffer, Reduced<float>(size(), static_cast<int64_t>(buffer.size()), ReduceOp::kSum));
  }
}

TEST_P(CollectivesTest, BroadcastAndHostValues) {
  for (int root = 0; root < size(); ++root) {
    std::vector<float> values = Input<float>(rank(), 17);
    communicator_->Broadcast(View(values), root, *ready_)->Wait(*stream_);
    EXPECT_EQ(values, Input<float>(root, 17));
    std::string text = "rank " + std::to_string(rank()) + std::string(rank(), '.');
    communicator_->BroadcastHost(&text, root);
    EXPECT_EQ(text, "rank " + std::to_string(root) + std::string(root, '.'));
  }
  double values[] = {1.0 + rank(), 0.5};
  communicator_->AllReduceHost(values, ReduceOp::kSum);
  EXPECT_EQ(values[0], size() * (size() + 1) / 2.0);
  EXPECT_EQ(values[1], size() * 0.5);
  int64_t extremes[] = {rank() + (int64_t{1} << 40)};
  communicator_->AllReduceHost(extremes, ReduceOp::kMax);
  EXPECT_EQ(extremes[0], size() - 1 + (int64_t{1} << 40));
  communicator_->Barrier();
  EXPECT_LT(communicator_->local_rank(), communicator_->local_size());
  EXPECT_FALSE(communicator_->host().empty());
}

INSTANTIATE_TEST_SUITE_P(ElementsPerCall, CollectivesTest,
                         ::testing::Values(int64_t{5}, int64_t{1} << 30));

}  // namespace
}  // namespace filigree
