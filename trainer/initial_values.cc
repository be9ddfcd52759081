#include "trainer/initial_values.h"

#include <algorithm>
#include <vector>

#include "trainer/device_segments.h"

namespace filigree {
namespace {

void WriteDrawn(const Parameter& parameter, const CellDraw& draw, FlatBuffer& buffer, int segment,
                Backend& backend, Stream& stream) {
  const auto layout = backend.PrepareLayout(parameter.layout);
  const int64_t count = parameter.segment_count(), most = std::min(count, kInitialPiece);
  Device& device = backend.device();
  const auto scratch = [&](DType dtype) {
    return device.Allocate(static_cast<size_t>(most) * SizeOf(dtype), "scratch");
  };
  const DeviceBuffer drawn = scratch(DType::kF32);
  const DeviceBuffer halves =
      RoundsThroughHalves(buffer) ? scratch(DType::kBF16) : DeviceBuffer();
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t piece = std::min(most, count - begin);
    const TensorView values = drawn.View(DType::kF32, piece);
    backend.DrawStored({.layout = layout.get(), .draw = draw, .first = begin, .out = values},
                       stream);
    ScatterOnDevice(buffer, segment, StateKind::kMaster, values,
                    halves.bytes() > 0 ? halves.View(DType::kBF16, piece) : TensorView(), backend,
                    stream, begin);
  }
  stream.Synchronize();  // the layout and the scratch memory are used until then
}

}  // namespace

void WriteInitialValues(const Parameter& parameter, uint64_t seed, FlatBuffer& buffer, int segment,
                        Backend& backend, Stream& stream) {
  const InitialValues initial(parameter, seed);
  if (initial.drawn() && !parameter.initial) {
    WriteDrawn(parameter, initial.draw(), buffer, segment, backend, stream);
    return;
  }
  const std::vector<int64_t> cells = parameter.layout.LogicalIndices();
  const std::vector<float> given = parameter.initial ? parameter.initial(seed) : std::vector<float>();
  std::vector<float> values(parameter.segment_count(), 0.0f);
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] < 0) continue;  // padding
    values[slot] = given.empty() ? static_cast<float>(initial[cells[slot]]) : given[cells[slot]];
  }
  ScatterSegment(buffer, segment, StateKind::kMaster, std::as_bytes(std::span<const float>(values)),
                 stream);
}

}  // namespace filigree
