#include <cstring>
#include <numeric>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

class GpuDeviceTest : public GpuTest {};

TEST_F(GpuDeviceTest, CountsMemoryByKind) {
  const MemoryUsage before = device().memory_usage();
  {
    const DeviceBuffer buffer = device().Allocate(1000, "kind of this test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
    EXPECT_EQ(device().memory_usage().bytes_by_kind.at("kind of this test"), 1000u);
    EXPECT_EQ(device().memory_usage().total_bytes, before.total_bytes + 1000);
    EXPECT_GE(device().memory_usage().peak_bytes, before.total_bytes + 1000);
  }
  EXPECT_EQ(device().memory_usage().total_bytes, before.total_bytes);
  EXPECT_EQ(device().Allocate(0, "nothing").data(), nullptr);
}

TEST_F(GpuDeviceTest, OutOfMemorySaysWhatWouldFit) {
  // A forked process could not use the driver: start a new one.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(device().Allocate(size_t{1} << 50, "activations"),
               "out of memory.* needed for activations.* free of .*What makes it smaller.*"
               "activations: .*batch.micro_batch_sequences.*model.recompute");
}

TEST_F(GpuDeviceTest, CopiesStridedRowsBothWays) {
  constexpr int64_t kRows = 7, kCols = 5, kHostStride = 9, kDeviceStride = 13;
  std::vector<float> host(kRows * kHostStride);
  std::iota(host.begin(), host.end(), 0.0f);
  const DeviceBuffer buffer = device().Allocate(kRows * kDeviceStride * sizeof(float), "test");
  const TensorView there =
      TensorView::Matrix(buffer.data(), DType::kF32, kRows, kCols, kDeviceStride);
  device().CopyAsync(there,
                     ConstTensorView::Matrix(host.data(), DType::kF32, kRows, kCols, kHostStride),
                     stream());
  std::vector<float> back(kRows * kCols, -1.0f);
  device().CopyAsync(TensorView(back.data(), DType::kF32, {kRows, kCols}), there, stream());
  stream().Synchronize();
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kCols; ++j) EXPECT_EQ(back[i * kCols + j], host[i * kHostStride + j]);
  }
}

TEST_F(GpuDeviceTest, ZeroesRowsAndNothingBetweenThem) {
  Mirror strided = Mirror::Integers(5, 7, DType::kF32, 1, /*gap=*/3);
  device().ZeroAsync(strided.gpu(), stream());
  stream().Synchronize();
  for (double value : strided.Download()) EXPECT_EQ(value, 0);
  EXPECT_TRUE(strided.GapsAreIntact());
}

TEST_F(GpuDeviceTest, EventsOrderStreams) {
  const auto other = device().NewStream();
  const auto event = device().NewEvent();
  EXPECT_TRUE(event->Done()) << "before the first Record";
  const size_t bytes = size_t{64} << 20;
  const auto count = static_cast<int64_t>(bytes);
  const DeviceBuffer a = device().Allocate(bytes, "test"), b = device().Allocate(bytes, "test");
  const DeviceBuffer host = device().AllocatePinned(bytes, "test");
  std::memset(host.data(), 7, bytes);
  device().ZeroAsync(b.View(DType::kU8, count), stream());
  device().CopyAsync(a.View(DType::kU8, count), host.View(DType::kU8, count), stream());
  event->Record(stream());
  other->Wait(*event);
  device().CopyAsync(b.View(DType::kU8, count), a.View(DType::kU8, count), *other);
  uint8_t last = 0;
  device().CopyAsync(TensorView(&last, DType::kU8, {1}), b.View(DType::kU8, 1, bytes - 1), *other);
  other->Synchronize();
  EXPECT_EQ(last, 7);
  event->Synchronize();
  EXPECT_TRUE(event->Done());
}

}  // namespace
}  // namespace filigree
