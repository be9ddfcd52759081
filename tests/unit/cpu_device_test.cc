#include <gtest/gtest.h>

#include <cstdint>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

TEST(CpuDeviceTest, AlignsAndCountsByKind) {
  CpuDevice device;
  DeviceBuffer values = device.Allocate(1000, "values");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(values.data()) % 256, 0u);
  EXPECT_EQ(values.bytes(), 1000u);
  {
    const DeviceBuffer scratch = device.AllocatePinned(24, "scratch");
    EXPECT_EQ(device.memory_usage().total_bytes, 1024u);
    EXPECT_EQ(device.memory_usage().bytes_by_kind["scratch"], 24u);
  }
  EXPECT_EQ(device.memory_usage().bytes_by_kind["values"], 1000u);
  EXPECT_EQ(device.memory_usage().bytes_by_kind["scratch"], 0u);
  EXPECT_EQ(device.memory_usage().total_bytes, 1000u);
  EXPECT_EQ(device.memory_usage().peak_bytes, 1024u);
  EXPECT_EQ(device.Allocate(0, "values").data(), nullptr);
}

TEST(CpuDeviceTest, OutOfMemorySaysWhatWasNeeded) {
  CpuDevice device;
  EXPECT_EXIT(device.Allocate(size_t{1} << 50, "master"), ::testing::ExitedWithCode(1),
              "out of memory: 1125899906842624 bytes needed for master, [0-9]+ available");
}

TEST(CpuDeviceTest, CopiesAndZeroesStridedRows) {
  CpuDevice device;
  const auto stream = device.NewStream();
  auto from = TestMatrix<float>::Random(5, 7, 1, 2);
  TestMatrix<float> to(5, 7, 4);
  device.CopyAsync(to.view(), from.view(), *stream);
  ExpectNear(to, [&](int64_t i, int64_t j) { return static_cast<double>(from(i, j)); });
  device.ZeroAsync(to.view(), *stream);
  ExpectNear(to, [](int64_t, int64_t) { return 0.0; });
  auto flat_from = TestMatrix<float>::Random(3, 4, 2);
  TestMatrix<float> flat_to(3, 4);
  device.CopyAsync(flat_to.flat(), flat_from.flat(), *stream);
  EXPECT_EQ(flat_to.data(), flat_from.data());
  device.ZeroAsync(flat_to.flat(), *stream);
  ExpectNear(flat_to, [](int64_t, int64_t) { return 0.0; });
  device.ZeroAsync(TensorView(), *stream);
}

TEST(CpuDeviceTest, EventsAreAlwaysDone) {
  CpuDevice device(DType::kF64);
  EXPECT_EQ(device.compute_dtype(), DType::kF64);
  const auto stream = device.NewStream();
  const auto event = device.NewEvent();
  EXPECT_TRUE(event->Done());
  event->Record(*stream);
  stream->Wait(*event);
  EXPECT_TRUE(event->Done());
}

TEST_F(CpuTest, OtherDtypesAreNamed) {
  std::vector<BFloat16> x(4);
  const TensorView view(x.data(), DType::kBF16, {4});
  EXPECT_EXIT(backend_.Add({view, view, view}, *stream_), ::testing::ExitedWithCode(1),
              "the CPU computes in F32 or F64, not BF16");
}

TEST_F(CpuTest, BrokenShapesAreNamed) {
  TestMatrix<float> x(2, 3), y(3, 2);
  EXPECT_EXIT(backend_.Gelu({x.view(), y.view()}, *stream_), ::testing::ExitedWithCode(1),
              "x is \\[2, 3\\], not \\[3, 2\\]");
}

}  // namespace
}  // namespace filigree
