// State in all its forms, and layouts made from marks, on the GPU: the CPU's bits.
#include "tests/unit/state_move_testing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "comm/bootstrap.h"
#include "kernels/sparse/unit_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

template <typename T>
std::vector<T> Download(TensorView view, Device& device, Stream& stream) {
  std::vector<T> host(static_cast<size_t>(view.size()));
  device.CopyAsync(TensorView(host.data(), view.dtype(), {view.size()}), view, stream);
  stream.Synchronize();
  return host;
}

class GpuStateMoveTest : public GpuTest {
 protected:
  // Slots and what they take, from a backend.
  struct Taken {
    std::vector<int32_t> slots;
    std::vector<float> values;
    bool operator==(const Taken&) const = default;
  };
  static Taken Take(const SparseLayout& from, const SparseLayout& to, const KeptRows& kept,
                    Backend& backend, Stream& on) {
    Device& device = backend.device();
    const auto before = backend.PrepareLayout(from), after = backend.PrepareLayout(to);
    const DeviceBuffer rows = Upload(kept.rows, device, on);
    const DeviceBuffer columns = Upload(kept.columns, device, on);
    std::vector<float> numbers(static_cast<size_t>(from.stored_count()));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i) + 0.5f;
    const DeviceBuffer values = Upload(numbers, device, on);
    const int64_t count = to.stored_count(), tail = 13;
    const DeviceBuffer slots = Upload(std::vector<int32_t>(count, -7), device, on);
    const DeviceBuffer taken = Upload(std::vector<float>(count + tail, -7.0f), device, on);
    MapStoredArgs args = {.from = before.get(),
                          .to = after.get(),
                          .slots = slots.View(DType::kI32, count)};
    if (!kept.rows.empty()) {
      args.rows = rows.View(DType::kI32, to.out());
      args.columns = columns.View(DType::kI32, to.in());
    }
    backend.MapStored(args, on);
    backend.TakeStored({.from = values.View(DType::kF32, from.stored_count()),
                        .slots = args.slots,
                        .to = taken.View(DType::kF32, count + tail),
                        .fresh = 3},
                       on);
    return {Download<int32_t>(args.slots, device, on),
            Download<float>(taken.View(DType::kF32, count + tail), device, on)};
  }
  void ExpectSameTaken(const SparseLayout& from, const SparseLayout& to, const KeptRows& kept) {
    const Taken ours = Take(from, to, kept, gpu(), stream());
    EXPECT_TRUE(ours == Take(from, to, kept, cpu(), cpu_stream()))
        << NameOf(from.kind()) << " to " << NameOf(to.kind());
  }
};

TEST_F(GpuStateMoveTest, TakesTheSameSlots) {
  for (const SparseLayout& from : MovableLayouts()) {
    for (const SparseLayout& to : MovableLayouts()) ExpectSameTaken(from, to, {});
    ExpectSameTaken(from, SparseLayout::Dense(3, 4, 5), {{3, 4, 69}, {0, 50, 51, 95}});
  }
}

TEST_F(GpuStateMoveTest, TakesLargeWeights) {
  ExpectSameTaken(RandomUnstructured(2048, 8192, 0.25, 1, "a"),
                  RandomUnstructured(2048, 8192, 0.25, 2, "b"), {});
  ExpectSameTaken(RandomUniformBlocks(4096, 2048, 128, 128, 0.3, 1, "a"),
                  RandomUniformBlocks(4096, 2048, 128, 128, 0.3, 2, "b"), {});
  // Columns of 32 bits.
  ExpectSameTaken(RandomUnstructured(30, 70000, 0.1, 1, "a"),
                  RandomUnstructured(30, 70000, 0.2, 2, "b"), {});
  ExpectSameTaken(SparseLayout::Dense(30, 70000), RandomUnstructured(30, 70000, 0.2, 2, "b"), {});
}

TEST_F(GpuStateMoveTest, DrawsTheHostsBits) {
  const auto draw_on = [](const SparseLayout& layout, DrawKind kind, int64_t first, Backend& backend,
                          Stream& on) {
    const auto prepared = backend.PrepareLayout(layout);
    const int64_t count = layout.stored_count() - first + 13;
    const DeviceBuffer drawn =
        Upload(std::vector<float>(static_cast<size_t>(count), -7.0f), backend.device(), on);
    const TensorView out = drawn.View(DType::kF32, count);
    backend.DrawStored({.layout = prepared.get(),
                        .draw = {.kind = kind, .scale = 0.02, .seed = 5, .stream = 6},
                        .first = first,
                        .out = out},
                       on);
    return Download<float>(out, backend.device(), on);
  };
  std::vector<SparseLayout> layouts = MovableLayouts();
  layouts.push_back(SparseLayout::Dense(2048, 4096));
  layouts.push_back(RandomUniformBlocks(4096, 2048, 128, 64, 0.3, 1, "a"));
  for (const SparseLayout& layout : layouts) {
    for (const DrawKind kind : {DrawKind::kNormal, DrawKind::kUniform}) {
      for (const int64_t first : {int64_t{0}, std::min<int64_t>(37, layout.stored_count())}) {
        EXPECT_TRUE(draw_on(layout, kind, first, gpu(), stream()) ==
                    draw_on(layout, kind, first, cpu(), cpu_stream()))
            << NameOf(layout.kind()) << " from slot " << first;
      }
    }
  }
}

TEST_F(GpuStateMoveTest, MovesWholeStatesAsTheHostDoes) {
  const auto world = MakeSingleProcessCommunicator();
  CheckStateMoves(*world, gpu(), stream());
}

TEST_F(GpuStateMoveTest, QuantisesToTheHostsCodes) {
  for (const QuantizationMap map : {QuantizationMap::kSigned, QuantizationMap::kUnsigned}) {
    for (const int64_t count : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{100001}}) {
      std::vector<float> numbers(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        const double x = RandomNormal(4, RngStream("test"), i) * std::pow(10.0, -(i % 9));
        numbers[i] = static_cast<float>(map == QuantizationMap::kSigned ? x : std::fabs(x));
        if (i / 256 % 5 == 1) numbers[i] = -std::fabs(numbers[i]);
        if (i / 256 % 5 == 2) numbers[i] = std::numeric_limits<float>::denorm_min();
        if (map == QuantizationMap::kUnsigned) numbers[i] = std::fabs(numbers[i]);
      }
      const int64_t blocks = (count + kQuantizationBlock - 1) / kQuantizationBlock;
      std::vector<uint8_t> codes(static_cast<size_t>(count));
      std::vector<float> scales(static_cast<size_t>(blocks)), back(static_cast<size_t>(count));
      QuantizeBlocks(map, numbers.data(), count, codes.data(), scales.data());
      DequantizeBlocks(map, codes.data(), scales.data(), count, back.data());
      const DeviceBuffer in = Upload(numbers, device(), stream());
      const DeviceBuffer there = Upload(std::vector<uint8_t>(codes.size(), 9), device(), stream());
      const DeviceBuffer scales_there =
          Upload(std::vector<float>(scales.size(), 9), device(), stream());
      const DeviceBuffer out = Upload(std::vector<float>(back.size(), 9), device(), stream());
      const TensorView code_view = there.View(DType::kU8, count);
      const TensorView scale_view = scales_there.View(DType::kF32, blocks);
      gpu().Quantize({.map = map,
                      .in = in.View(DType::kF32, count),
                      .codes = code_view,
                      .scales = scale_view},
                     stream());
      gpu().Dequantize({.map = map,
                        .codes = code_view,
                        .scales = scale_view,
                        .out = out.View(DType::kF32, count)},
                       stream());
      EXPECT_EQ(Download<uint8_t>(code_view, device(), stream()), codes);
      EXPECT_EQ(Download<float>(scale_view, device(), stream()), scales);
      EXPECT_EQ(Download<float>(out.View(DType::kF32, count), device(), stream()), back);
    }
  }
}

TEST_F(GpuStateMoveTest, MarksBecomeTheirLayout) {
  const SparseLayout kinds[] = {
      RandomUnstructured(70, 96, 0.3, 1, "a"),      RandomUnstructured(30, 70000, 0.1, 1, "a"),
      RandomUnstructured(5000, 33, 0.5, 1, "a"),    RandomUnstructuredCells(9, 40, 0, 1, "a"),
      RandomUnstructuredCells(9, 40, 360, 1, "a"),  RandomUniformBlocks(70, 96, 16, 32, 0.5, 3, "c"),
      RandomUniformBlocks(4096, 2048, 64, 64, 0.3, 3, "c")};
  for (const SparseLayout& like : kinds) {
    const int64_t units = UnitCount(like);
    std::vector<uint8_t> marks(static_cast<size_t>(units));
    for (int64_t i = 0; i < units; ++i) marks[i] = RandomBelow(3, RngStream("marks"), i, 4);
    const DeviceBuffer there = Upload(marks, device(), stream());
    const auto made = gpu().LayoutOfMarks(like, there.View(DType::kU8, units), stream());
    const SparseLayout expected = WithUnits(like, marks);
    EXPECT_TRUE(made->layout() == expected) << NameOf(like.kind()) << " of " << units;
    // Its indices on the device are what was made there: they say which units are stored.
    const DeviceBuffer stored = Upload(std::vector<uint8_t>(marks.size(), 9), device(), stream());
    gpu().MarkStored({.weight = made.get(), .marks = stored.View(DType::kU8, units)}, stream());
    for (uint8_t& mark : marks) mark = mark == 1;
    EXPECT_TRUE(Download<uint8_t>(stored.View(DType::kU8, units), device(), stream()) == marks);
    // Prepared again, nothing more is held.
    const size_t held = device().memory_usage().total_bytes;
    const auto again = gpu().PrepareLayout(expected);
    EXPECT_EQ(device().memory_usage().total_bytes, held);
    EXPECT_EQ(again->bytes(), made->bytes());
  }
}

}  // namespace
}  // namespace filigree
