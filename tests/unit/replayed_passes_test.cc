// When a pass is run, recorded and replayed, on a device that only counts.
#include "trainer/replayed_passes.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace filigree {
namespace {

class NoStream final : public Stream {
 public:
  void Wait(const Event&) override {}
  void Synchronize() override {}
};

struct Counts {
  int recorded = 0, submitted = 0;
};

class CountingRecording final : public Recording {
 public:
  explicit CountingRecording(Counts& counts) : counts_(counts) {}
  void Submit(Stream&) override { ++counts_.submitted; }

 private:
  Counts& counts_;
};

class CountingDevice final : public Device {
 public:
  std::string_view name() const override { return "counting"; }
  DType compute_dtype() const override { return DType::kF32; }
  int64_t row_alignment() const override { return 1; }
  DeviceBuffer Allocate(size_t, std::string_view) override { return ++epoch, DeviceBuffer(); }
  DeviceBuffer AllocatePinned(size_t, std::string_view) override { return {}; }
  void CopyAsync(TensorView, ConstTensorView, Stream&) override {}
  void ZeroAsync(TensorView, Stream&) override {}
  std::unique_ptr<Stream> NewStream(StreamPriority) override {
    return std::make_unique<NoStream>();
  }
  std::unique_ptr<Event> NewEvent() override { return nullptr; }
  std::unique_ptr<Event> NewTimedEvent() override { return nullptr; }
  std::unique_ptr<Recording> Record(const std::function<void()>& submit, Stream&) override {
    if (!records) return nullptr;
    submit();
    if (fails) return nullptr;
    ++counts.recorded;
    return std::make_unique<CountingRecording>(counts);
  }
  uint64_t memory_epoch() const override { return epoch; }
  MemoryUsage memory_usage() const override { return {}; }
  void ForgetPeak() override {}

  Counts counts;
  uint64_t epoch = 0;
  bool records = true;
  bool fails = false;  // after the submission, as CUDA does
};

class ReplayedPassesTest : public ::testing::Test {
 protected:
  // Whether the pass was called; it allocates so many times.
  bool Run(const ReplayedPasses::Key& key, int allocations = 0) {
    const int before = calls_;
    const bool called = passes_.Run(
        key,
        [&] {
          ++calls_;
          for (int i = 0; i < allocations; ++i) device_.Allocate(1, "test");
        },
        stream_);
    EXPECT_EQ(called, calls_ > before);
    return called;
  }
  static ReplayedPasses::Key KeyOf(double loss_scale) {
    ReplayedPasses::Key key;
    key.loss_scale = loss_scale;
    return key;
  }

  CountingDevice device_;
  NoStream stream_;
  ReplayedPasses passes_{device_};
  int calls_ = 0;
};

TEST_F(ReplayedPassesTest, RunsRecordsReplays) {
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.recorded, 0);
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.recorded, 1);
  EXPECT_EQ(device_.counts.submitted, 1);  // what is recorded has not run by that
  EXPECT_FALSE(Run(KeyOf(1)));
  EXPECT_FALSE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.submitted, 3);
  EXPECT_EQ(passes_.replays(), 2);
}

TEST_F(ReplayedPassesTest, EveryPartOfTheKeyCounts) {
  const Model* elsewhere = reinterpret_cast<const Model*>(&device_);
  int32_t tokens[8] = {};
  ReplayedPasses::Key key = KeyOf(1);
  key.tokens = ConstTensorView(tokens, DType::kI32, {8});
  key.seq_len = 4;
  EXPECT_TRUE(Run(key));
  for (int part = 0; part < 7; ++part) {
    ReplayedPasses::Key other = key;
    if (part == 0) other.model = elsewhere;
    if (part == 1) other.state.materialises = true;
    if (part == 2) other.state.overwrites = true;
    if (part == 3) other.tokens = ConstTensorView(tokens, DType::kI32, {4});
    if (part == 4) other.tokens = ConstTensorView(tokens + 1, DType::kI32, {8});
    if (part == 5) other.seq_len = 2;
    if (part == 6) other.loss_scale = 0.5;
    EXPECT_TRUE(Run(other)) << part;
    EXPECT_EQ(device_.counts.recorded, 0) << part;
  }
  EXPECT_TRUE(Run(key));
  EXPECT_EQ(device_.counts.recorded, 1);
  EXPECT_FALSE(Run(key));
}

// Memory that a first pass takes is there when it is recorded; memory that comes or goes later ends
// all recordings.
TEST_F(ReplayedPassesTest, MemoryEndsRecordings) {
  EXPECT_TRUE(Run(KeyOf(1), /*allocations=*/3));
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_FALSE(Run(KeyOf(1)));
  EXPECT_TRUE(Run(KeyOf(2), /*allocations=*/1));
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.recorded, 1);
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_FALSE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.recorded, 2);
}

TEST_F(ReplayedPassesTest, PassesThatNeverComeAgainAreForgotten) {
  for (int i = 1; i <= 100; ++i) EXPECT_TRUE(Run(KeyOf(i)));
  EXPECT_TRUE(Run(KeyOf(100)));
  EXPECT_EQ(device_.counts.recorded, 1);
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(device_.counts.recorded, 1);
}

// What was called to be recorded has not begun, so the pass is called again; then no more is tried.
TEST_F(ReplayedPassesTest, AFailedRecordingIsRunAndIsTheLast) {
  EXPECT_TRUE(Run(KeyOf(2)));
  device_.fails = true;
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(calls_, 4);
  device_.fails = false;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Run(KeyOf(i % 2)));
  EXPECT_EQ(calls_, 7);
  EXPECT_EQ(device_.counts.recorded, 0);
  EXPECT_EQ(passes_.replays(), 0);
}

TEST_F(ReplayedPassesTest, DevicesThatDoNotRecordRunEveryPass) {
  device_.records = false;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Run(KeyOf(1)));
  EXPECT_EQ(calls_, 4);
}

}  // namespace
}  // namespace filigree
