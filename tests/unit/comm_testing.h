// Collectives with inputs whose results are known exactly, for every communicator.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/base/device.h"

namespace filigree {

// A vector of `count` elements of `dtype` on a device, set from and read as doubles.
class TestVector {
 public:
  TestVector(Device& device, DType dtype, int64_t count, Stream& stream)
      : device_(device), stream_(stream), dtype_(dtype), count_(count) {
    buffer_ = device.Allocate(count * SizeOf(dtype), "test");
    host_ = device.AllocatePinned(count * SizeOf(dtype), "test");
  }

  TensorView view() const { return buffer_.View(dtype_, count_); }
  TensorView Slice(int64_t begin, int64_t count) const { return view().Range(begin, count); }

  template <typename Value>
  void Set(const Value& value) {
    for (int64_t i = 0; i < count_; ++i) Store(i, value(i));
    device_.CopyAsync(view(), host_.View(dtype_, count_), stream_);
  }
  std::vector<double> Get() {
    device_.CopyAsync(host_.View(dtype_, count_), view(), stream_);
    stream_.Synchronize();
    std::vector<double> values(count_);
    for (int64_t i = 0; i < count_; ++i) values[i] = Load(i);
    return values;
  }

 private:
  template <typename T>
  T* host() const {
    return static_cast<T*>(host_.data());
  }
  void Store(int64_t i, double value) {
    switch (dtype_) {
      case DType::kF32:
        host<float>()[i] = static_cast<float>(value);
        break;
      case DType::kF64:
        host<double>()[i] = value;
        break;
      case DType::kBF16:
        host<BFloat16>()[i] = BFloat16(static_cast<float>(value));
        break;
      case DType::kI64:
        host<int64_t>()[i] = static_cast<int64_t>(value);
        break;
      default:
        CHECK(false) << NameOf(dtype_);
    }
  }
  double Load(int64_t i) const {
    switch (dtype_) {
      case DType::kF32:
        return host<float>()[i];
      case DType::kF64:
        return host<double>()[i];
      case DType::kBF16:
        return static_cast<float>(host<BFloat16>()[i]);
      case DType::kI64:
        return static_cast<double>(host<int64_t>()[i]);
      default:
        CHECK(false) << NameOf(dtype_);
    }
  }

  Device& device_;
  Stream& stream_;
  DType dtype_;
  int64_t count_;
  DeviceBuffer buffer_, host_;
};

// Small integers: sums of them are exact in every dtype and order, for up to 8 ranks.
inline double InputOf(int rank, int64_t i) {
  return static_cast<double>((rank * 5 + i * 3) % 17) - 8;
}

// Runs every collective, in place and not, over small, odd and (where an implementation may cut a
// tensor into pieces) large sizes, and compares each element. Collective.
class CollectiveCheck {
 public:
  CollectiveCheck(Communicator& communicator, Device& device)
      : comm_(communicator),
        device_(device),
        stream_(device.NewStream()),
        ready_(device.NewEvent()) {}

  void Run(DType dtype) {
    for (const int64_t count : {int64_t{1}, int64_t{255}, int64_t{10007}}) {
      SCOPED_TRACE(std::string(NameOf(dtype)) + " x " + std::to_string(count));
      AllReduce(dtype, count, ReduceOp::kSum);
      if (dtype != DType::kBF16) {
        AllReduce(dtype, count, ReduceOp::kMin);
        AllReduce(dtype, count, ReduceOp::kMax);
      }
      for (const bool in_place : {false, true}) {
        ReduceScatter(dtype, count, in_place);
        AllGather(dtype, count, in_place);
      }
      for (int root = 0; root < comm_.size(); ++root) Broadcast(dtype, count, root);
    }
  }

  // A size beyond the pieces that an implementation may cut.
  void RunLarge(DType dtype) {
    constexpr int64_t kCount = 300001;
    AllReduce(dtype, kCount, ReduceOp::kSum);
    ReduceScatter(dtype, kCount, /*in_place=*/true);
    AllGather(dtype, kCount, /*in_place=*/true);
  }

  void HostCollectives() {
    double doubles[] = {1.5 * comm_.rank(), -1.0 * comm_.rank()};
    comm_.AllReduceHost(doubles, ReduceOp::kSum);
    const int size = comm_.size();
    EXPECT_EQ(doubles[0], 1.5 * size * (size - 1) / 2);
    EXPECT_EQ(doubles[1], -1.0 * size * (size - 1) / 2);
    int64_t integers[] = {comm_.rank(), comm_.rank()};
    comm_.AllReduceHost(integers, ReduceOp::kMax);
    EXPECT_EQ(integers[1], size - 1);
    comm_.AllReduceHost(integers, ReduceOp::kMin);
    for (int root = 0; root < size; ++root) {
      std::string text = comm_.rank() == root ? "from " + std::to_string(root) : "another length";
      comm_.BroadcastHost(&text, root);
      EXPECT_EQ(text, "from " + std::to_string(root));
    }
    comm_.Barrier();
  }

 private:
  double Reduced(int64_t i, ReduceOp op) const {
    double result = InputOf(0, i);
    for (int rank = 1; rank < comm_.size(); ++rank) {
      const double next = InputOf(rank, i);
      result = op == ReduceOp::kSum   ? result + next
               : op == ReduceOp::kMin ? std::min(result, next)
                                      : std::max(result, next);
    }
    return result;
  }
  Event& Ready() {
    ready_->Record(*stream_);
    return *ready_;
  }
  template <typename Expected>
  void Expect(TestVector& found, const char* what, const Expected& expected) {
    const std::vector<double> values = found.Get();
    for (size_t i = 0; i < values.size(); ++i) {
      const double wanted = expected(static_cast<int64_t>(i));
      if (values[i] != wanted) {  // a macro an element takes seconds
        FAIL() << what << ", element " << i << " is " << values[i] << ", not " << wanted;
      }
    }
  }

  void AllReduce(DType dtype, int64_t count, ReduceOp op) {
    TestVector data(device_, dtype, count, *stream_);
    data.Set([&](int64_t i) { return InputOf(comm_.rank(), i); });
    comm_.AllReduce(data.view(), op, Ready())->Wait(*stream_);
    Expect(data, "all-reduce", [&](int64_t i) { return Reduced(i, op); });
  }
  void ReduceScatter(DType dtype, int64_t count, bool in_place) {
    TestVector whole(device_, dtype, count * comm_.size(), *stream_);
    TestVector apart(device_, dtype, count, *stream_);
    const int64_t begin = comm_.rank() * count;
    whole.Set([&](int64_t i) { return InputOf(comm_.rank(), i); });
    const TensorView out = in_place ? whole.Slice(begin, count) : apart.view();
    comm_.ReduceScatter(whole.view(), out, ReduceOp::kSum, Ready())->Wait(*stream_);
    if (in_place) device_.CopyAsync(apart.view(), out, *stream_);
    Expect(apart, "reduce-scatter", [&](int64_t i) { return Reduced(begin + i, ReduceOp::kSum); });
  }
  void AllGather(DType dtype, int64_t count, bool in_place) {
    TestVector whole(device_, dtype, count * comm_.size(), *stream_);
    TestVector apart(device_, dtype, count, *stream_);
    whole.Set([](int64_t) { return -77; });
    apart.Set([&](int64_t i) { return InputOf(comm_.rank(), i); });
    const TensorView slice = whole.Slice(comm_.rank() * count, count);
    if (in_place) device_.CopyAsync(slice, apart.view(), *stream_);
    comm_.AllGather(in_place ? slice : apart.view(), whole.view(), Ready())->Wait(*stream_);
    Expect(whole, "all-gather",
           [&](int64_t i) { return InputOf(static_cast<int>(i / count), i % count); });
  }
  void Broadcast(DType dtype, int64_t count, int root) {
    TestVector data(device_, dtype, count, *stream_);
    data.Set([&](int64_t i) { return InputOf(comm_.rank(), i); });
    comm_.Broadcast(data.view(), root, Ready())->Wait(*stream_);
    Expect(data, "broadcast", [&](int64_t i) { return InputOf(root, i); });
  }

  Communicator& comm_;
  Device& device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Event> ready_;
};

}  // namespace filigree
