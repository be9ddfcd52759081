// Initial values where they are kept, on one rank and on shards of several.
#include "trainer/initial_values.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/dtype.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/sparse/random_layout.h"

namespace filigree {
namespace {

constexpr uint64_t kSeed = 5;

Parameter ParameterOf(const std::string& name, SparseLayout layout, InitKind init,
                      int64_t padding = 0) {
  Parameter parameter;
  parameter.name = name;
  parameter.shape = {layout.out(), layout.in()};
  parameter.layout = std::move(layout);
  parameter.padding_count = padding;
  parameter.init = init;
  return parameter;
}

// Every way of starting, every kind of layout, padding inside and behind, and one of several
// pieces.
std::vector<Parameter> Parameters() {
  std::vector<Parameter> parameters = {
      ParameterOf("normal", SparseLayout::Dense(70, 96), InitKind::kNormal),
      ParameterOf("vocabulary", SparseLayout::Dense(61, 42), InitKind::kNormal, 3 * 42),
      ParameterOf("pitched", SparseLayout::Dense(70, 90, 96), InitKind::kUniform),
      ParameterOf("masked", RandomUnstructured(70, 96, 0.8, 2, "m"), InitKind::kNormal),
      ParameterOf("blocks", RandomUniformBlocks(70, 90, 16, 32, 0.5, 3, "b"), InitKind::kUniform),
      ParameterOf("n_m", RandomNM(70, 96, 2, 4, false, 6, "n"), InitKind::kNormal),
      ParameterOf("gain", SparseLayout::Dense(1, 90), InitKind::kOnes, 6),
      ParameterOf("bias", SparseLayout::Dense(1, 90), InitKind::kZeros),
      ParameterOf("given", RandomUnstructured(30, 40, 0.5, 7, "g"), InitKind::kNormal),
      ParameterOf("long", SparseLayout::Dense(1030, 1030), InitKind::kNormal)};
  parameters[8].initial = [](uint64_t seed) {
    std::vector<float> values(30 * 40);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(seed) + 0.25f * static_cast<float>(i);
    }
    return values;
  };
  return parameters;
}

// By the definition, cell by cell: padding is zero.
std::vector<float> Expected(const Parameter& parameter, bool bf16) {
  const std::vector<int64_t> cells = parameter.layout.LogicalIndices();
  const InitialValues drawn(parameter, kSeed);
  std::vector<float> values(static_cast<size_t>(parameter.segment_count()), 0.0f);
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] < 0) continue;
    const float value = parameter.initial
                            ? parameter.initial(kSeed)[static_cast<size_t>(cells[slot])]
                            : static_cast<float>(drawn[cells[slot]]);
    values[slot] = bf16 ? static_cast<float>(BFloat16(value)) : value;
  }
  return values;
}

TEST(InitialValuesTest, EveryRankHasAllValuesAndItsShardOfTheMaster) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  const std::vector<Parameter> parameters = Parameters();
  ASSERT_GT(parameters.back().segment_count(), kInitialPiece);
  std::vector<SegmentSpec> segments;
  for (const Parameter& p : parameters) segments.push_back({.count = p.segment_count()});
  const int shards = world->size();
  for (const bool bf16 : {false, true}) {
    SCOPED_TRACE(bf16 ? "BF16" : "F32");
    FlatBuffer buffer(device, FlatLayout::Build(segments, shards, 20000),
                      shards > 1 ? world->rank() : 0, DType::kF32, DType::kF32, *stream,
                      {.bf16 = bf16, .eight_bit_moments = false}, {},
                      shards > 1 ? world.get() : nullptr);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const int segment = static_cast<int>(i);
      WriteInitialValues(parameters[i], kSeed, buffer, segment, backend, *stream);
      const std::vector<float> expected = Expected(parameters[i], bf16);
      const float* values = buffer.Values(segment).As<float>();
      EXPECT_TRUE(std::vector<float>(values, values + expected.size()) == expected)
          << "values of " << parameters[i].name;
      const std::vector<std::byte> master =
          GatherSegment(buffer, segment, StateKind::kMaster, *world, *stream);
      ASSERT_EQ(master.size(), expected.size() * sizeof(float));
      EXPECT_EQ(std::memcmp(master.data(), expected.data(), master.size()), 0)
          << "master of " << parameters[i].name;
    }
  }
}

}  // namespace
}  // namespace filigree
