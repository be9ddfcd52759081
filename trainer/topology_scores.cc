#include "trainer/topology_scores.h"

#include <algorithm>
#include <utility>

#include "kernels/base/math.h"
#include "kernels/sparse/unit_layout.h"
#include "trainer/device_segments.h"

namespace filigree {
namespace {

constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

TensorView Dense(const DeviceBuffer& buffer, const SparseLayout& layout) {
  if (buffer.bytes() == 0) return {};
  return buffer.View(DType::kF32, layout.logical_count()).Reshape({layout.out(), layout.in()});
}

}  // namespace

StateScores::StateScores(const TrainingState& state, std::vector<Weight> weights,
                         const Criterion& criterion, bool grows_by_gradient, uint64_t seed,
                         Communicator& communicator, Backend& backend, Stream& stream,
                         int64_t* bytes)
    : state_(state),
      weights_(std::move(weights)),
      criterion_(criterion),
      grows_by_gradient_(grows_by_gradient),
      seed_(seed),
      communicator_(communicator),
      backend_(backend),
      stream_(stream),
      bytes_(bytes) {
  int64_t gathered = 0, grown = 0;
  for (size_t i = 0; i < weights_.size(); ++i) {
    const SparseLayout& layout = ParameterOf(i).layout;
    if (!HoldsWhole(state.buffer(), weights_[i].parameter, StateKind::kMaster)) {
      gathered = std::max(gathered, ParameterOf(i).segment_count());
    }
    if (layout.kind() == LayoutKind::kBlocked) grown = std::max(grown, UnitCount(layout));
  }
  if (gathered > 0) {
    gathered_ = backend.device().Allocate(static_cast<size_t>(gathered * kFloat), "scratch");
  }
  if (grows_by_gradient && grown > 0) {
    grow_scores_ = backend.device().Allocate(static_cast<size_t>(grown * kFloat), "scratch");
  }
}

const Parameter& StateScores::ParameterOf(size_t weight) const {
  return state_.parameters()[weights_[weight].parameter];
}

ConstTensorView StateScores::Keep(size_t weight, const PreparedLayout& prepared,
                                  TensorView memory) {
  const Parameter& parameter = ParameterOf(weight);
  const int index = weights_[weight].parameter;
  TensorView gathered;
  if (!HoldsWhole(state_.buffer(), index, StateKind::kMaster)) {
    gathered = gathered_.View(DType::kF32, parameter.segment_count());
  }
  ScoreInputs inputs = {.parameter = &parameter, .seed = seed_};
  inputs.values = GatherOnDevice(state_.buffer(), index, StateKind::kMaster, gathered,
                                 communicator_, backend_, stream_);
  if (state_.buffer().layout().shards() > 1) *bytes_ += parameter.segment_count() * kFloat;
  if (const WeightStatistics* statistics = weights_[weight].statistics) {
    inputs.grads = Dense(statistics->grads, parameter.layout);
    inputs.hessian_grads = Dense(statistics->hessian_grads, parameter.layout);
    inputs.input_squares = statistics->input_squares;
  }
  return ScoreStored(criterion_, inputs, prepared, memory, backend_, stream_);
}

ConstTensorView StateScores::Grow(size_t weight) {
  if (!grows_by_gradient_) return {};
  const SparseLayout& layout = ParameterOf(weight).layout;
  const TensorView grads = Dense(weights_[weight].statistics->grads, layout);
  if (layout.kind() == LayoutKind::kUnstructured) return grads.Flat();
  const auto prepared = backend_.PrepareLayout(layout);
  const TensorView scores = grow_scores_.View(DType::kF32, UnitCount(layout));
  backend_.ScoreUnits(
      {.weight = prepared.get(), .dense = grads, .every_unit = true, .scores = scores}, stream_);
  stream_.Synchronize();  // `prepared` is read until then
  return scores;
}

int64_t SelectionBytes(const TopologyEntry& entry, const std::vector<int64_t>& elements,
                       bool holds_master) {
  const std::vector<WeightShape> shapes = ShapesOf(entry);
  int64_t largest = 0, units = 0, inputs = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    largest = std::max(largest, elements[i]);
    units = std::max(units, shapes[i].units);
    inputs = std::max(inputs, shapes[i].in);
  }
  int64_t bytes = ProposalBytes(shapes, entry.spec);
  if (!holds_master) bytes += largest * kFloat;
  if (StoresBlocks(entry.spec) && entry.rule->growth == Growth::kGradient) bytes += units * kFloat;
  if (FindCriterion(entry.spec.criterion)->needs_inputs()) bytes += inputs * kFloat;
  return bytes;
}

int64_t IndexBytes(const TopologyEntry& entry, const std::vector<int64_t>& elements) {
  const std::vector<WeightShape> shapes = ShapesOf(entry);
  const bool blocked = StoresBlocks(entry.spec);
  const int64_t height = blocked ? entry.spec.block_out : 1;
  const int64_t width = blocked ? entry.spec.block_in : 1;
  int64_t bytes = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const int64_t rows = CeilDiv(shapes[i].out, height), cols = CeilDiv(shapes[i].in, width);
    const int64_t column_bytes = cols <= int64_t{1} << 16 ? 2 : 4;
    bytes += (rows + 1) * kFloat + elements[i] / (height * width) * column_bytes;
  }
  return bytes;
}

}  // namespace filigree
