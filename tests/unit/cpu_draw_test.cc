// Random numbers of stored cells: accurate, and the same bits one by one and in vectors.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

TEST(DrawTest, NormalsAreBoxMullersToFewRoundings) {
  for (uint64_t i = 0; i < 200000; ++i) {
    const auto w = Philox4x32(7, 3, i);
    const auto integer = [&](int at) { return ((uint64_t{w[at + 1]} << 32) | w[at]) >> 11; };
    const long double u = (static_cast<long double>(integer(0)) + 1) * 0x1.0p-53L;
    const long double angle = static_cast<long double>(integer(2)) * 0x1.0p-53L;
    const long double radius = std::sqrt(-2 * std::log(u));
    const long double expected =
        radius * std::cos(2 * std::numbers::pi_v<long double> * angle);
    ASSERT_NEAR(RandomNormal(7, 3, i), static_cast<double>(expected),
                static_cast<double>(8 * 0x1.0p-53L * radius + 1e-300L))
        << i;
  }
}

TEST(DrawTest, StoredCellsHaveTheirOwnNumbers) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  const SparseLayout layouts[] = {SparseLayout::Dense(70, 96), SparseLayout::Dense(70, 96, 104),
                                  RandomUnstructured(70, 96, 0.3, 1, "a"),
                                  RandomUniformBlocks(70, 90, 16, 32, 0.5, 3, "b"),
                                  RandomNM(70, 96, 2, 4, false, 6, "c")};
  for (const SparseLayout& layout : layouts) {
    const auto prepared = backend.PrepareLayout(layout);
    const std::vector<int64_t> cells = layout.LogicalIndices();
    for (const DrawKind kind : {DrawKind::kNormal, DrawKind::kUniform}) {
      const CellDraw draw = {.kind = kind, .scale = 0.02, .seed = 5, .stream = RngStream("test")};
      const int64_t first = 37, tail = 11, count = layout.stored_count() - first + tail;
      std::vector<float> drawn(static_cast<size_t>(count), -7.0f);
      backend.DrawStored({.layout = prepared.get(),
                          .draw = draw,
                          .first = first,
                          .out = TensorView(drawn.data(), DType::kF32, {count})},
                         *stream);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t cell = i < count - tail ? cells[first + i] : -1;
        const float expected = cell < 0 ? 0.0f : static_cast<float>(draw(cell));
        ASSERT_EQ(drawn[i], expected) << NameOf(layout.kind()) << " slot " << first + i;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
