#include "trainer/state_layout.h"

#include <algorithm>
#include <string>
#include <utility>

#include "comm/link_model.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

constexpr double kBytesPerMegabyte = 1e6;

int64_t BucketBytesOf(int64_t stored, const RunSpec& run, int world_size) {
  if (run.bucket_megabytes > 0) {
    return static_cast<int64_t>(run.bucket_megabytes * kBytesPerMegabyte);
  }
  return ChooseBucketBytes(run.link, run.zero_stage == 1, world_size,
                           stored * static_cast<int64_t>(SizeOf(run.wire_dtype)));
}

// "layers.3" of a layer's parameter, else nothing.
std::string LayerOf(const std::string& name) {
  if (!name.starts_with("layers.")) return "";
  return name.substr(0, name.find('.', sizeof("layers.")));
}

}  // namespace

int64_t BucketBytes(const std::vector<Parameter>& parameters, const RunSpec& run, int world_size) {
  int64_t stored = 0;
  for (const int64_t count : SegmentCounts(parameters)) stored += count;
  return BucketBytesOf(stored, run, world_size);
}

std::vector<int64_t> SegmentCounts(const std::vector<Parameter>& parameters) {
  std::vector<int64_t> counts;
  for (const Parameter& parameter : parameters) counts.push_back(parameter.segment_count());
  return counts;
}

std::vector<SegmentSpec> SegmentsOf(const std::vector<Parameter>& parameters,
                                    const std::vector<int64_t>& counts) {
  std::vector<SegmentSpec> segments;
  int unit = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const bool sparsified = parameters[i].layout.kind() != LayoutKind::kDense;
    // Units in order of creation: the embedding, each layer, what comes after.
    const std::string layer = LayerOf(parameters[i].name);
    if (i > 0 && layer != LayerOf(parameters[i - 1].name)) ++unit;
    segments.push_back({.count = counts[i],
                        .kind = sparsified ? TrafficKind::kSparsified : TrafficKind::kDense,
                        .group = parameters[i].decay ? 0 : 1,
                        .product = parameters[i].product,
                        .unit = unit});
  }
  return segments;
}

FlatLayout LayOutSegments(const std::vector<SegmentSpec>& segments, const RunSpec& run,
                          int world_size) {
  int64_t stored = 0;
  for (const SegmentSpec& segment : segments) stored += segment.count;
  const int64_t bucket_elements =
      BucketBytesOf(stored, run, world_size) / static_cast<int64_t>(SizeOf(run.wire_dtype));
  const bool split_units = std::ranges::any_of(
      run.phases, [](const PhaseSpec& phase) { return phase.optimizer.per_layer; });
  return FlatLayout::Build(segments, run.zero_stage == 1 ? world_size : 1, bucket_elements,
                           split_units);
}

GradientSlots SlotsOf(const RunSpec& run, int phase, int world_size) {
  const PhaseSpec& spec = run.phases[phase];
  const int64_t sequences = CeilDiv(spec.batch.sequences_per_step(), world_size);
  if (!spec.optimizer.per_layer) return {};
  // A tied embedding's gradient is begun by the head and ended by the embedding; GPT-2's norms also
  // sum the gradient of the bias before them, which belongs to the layer below: neither is one
  // layer's.
  if (run.model.tied_head || run.model.family == ModelFamily::kGpt2) return {};
  if (sequences > spec.batch.micro_batch_sequences) return {};
  return {.count = world_size > 1 ? 2 : 1};
}

FlatLayout LayOutParameters(const std::vector<Parameter>& parameters, const RunSpec& run,
                            int world_size) {
  return LayOutSegments(SegmentsOf(parameters, SegmentCounts(parameters)), run, world_size);
}

FlatBuffer MakeFlatBuffer(const std::vector<Parameter>& parameters, const RunSpec& run, int phase,
                          Communicator& communicator, Device& device, Stream& stream) {
  FlatLayout layout = LayOutParameters(parameters, run, communicator.size());
  const bool sharded = layout.shards() > 1;
  return FlatBuffer(device, std::move(layout), sharded ? communicator.rank() : 0,
                    device.compute_dtype(), run.grad_dtype, stream,
                    run.phases[phase].optimizer.state, SlotsOf(run, phase, communicator.size()),
                    sharded ? &communicator : nullptr);
}

std::optional<NarrowWire> WireOf(const RunSpec& run, Backend& backend) {
  if (run.wire_dtype == run.grad_dtype) return std::nullopt;
  return NarrowWire{.dtype = run.wire_dtype,
                    .round = [&backend](ConstTensorView from, TensorView to, Stream& stream) {
                      backend.Round({.in = from, .out = to}, stream);
                    }};
}

}  // namespace filigree
