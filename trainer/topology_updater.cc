#include "trainer/topology_updater.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "trainer/topology/criterion.h"
#include "trainer/topology/units.h"

namespace filigree {
namespace {

// Of the values' norm: how far GraSP's finite difference moves them along the gradient.
constexpr double kRelativePerturbation = 1e-2;

int IndexOf(const std::vector<Parameter>& parameters, const std::string& name) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name == name) return static_cast<int>(i);
  }
  CHECK(false) << name << " is no parameter of this model";
  return -1;
}

// Norm over the cells of one array.
double SumSquares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

}  // namespace

void CheckLayoutsAgree(const std::vector<Parameter>& parameters, Communicator& communicator) {
  std::vector<int64_t> lowest;
  for (const Parameter& parameter : parameters) {
    lowest.push_back(static_cast<int64_t>(parameter.layout.fingerprint()));
  }
  std::vector<int64_t> highest = lowest;
  communicator.AllReduceHost(lowest, ReduceOp::kMin);
  communicator.AllReduceHost(highest, ReduceOp::kMax);
  for (size_t i = 0; i < parameters.size(); ++i) {
    CHECK(lowest[i] == highest[i])
        << parameters[i].name << ": its layout differs between the ranks (fingerprint here "
        << std::hex << parameters[i].layout.fingerprint() << std::dec
        << "); memory or the exchange is damaged: resume from the newest checkpoint";
  }
}

void TopologyUpdater::BeginPhase(int phase) {
  phase_ = phase;
  entries_ = EntriesOf(linears_, run_.phases[phase]);
  statistics_.clear();
}

TopologyUpdater::Needs TopologyUpdater::NeedsAt(int64_t step) const {
  const PhaseSpec& phase = run_.phases[phase_];
  Needs needs;
  for (const TopologyEntry& entry : entries_) {
    const auto action = entry.rule->action(entry.spec, TimelineOf(phase), step - phase.first_step);
    if (!action) continue;
    const Criterion& criterion = *FindCriterion(entry.spec.criterion);
    needs.grads |= criterion.needs_grads || entry.rule->growth == Growth::kGradient;
    needs.hessian |= criterion.needs_hessian;
    needs.inputs |= criterion.needs_inputs;
  }
  return needs;
}

void TopologyUpdater::StartCollecting(Model& model, int64_t step, Stream& stream) {
  const Needs needs = NeedsAt(step);
  if (!needs.any()) return;
  std::map<std::string, LinearStatistics> requests;
  for (const TopologyEntry& entry : entries_) {
    for (const LinearSpec& linear : entry.linears) {
      const std::string name = linear.name + ".weight";
      Statistics& statistics = statistics_[name];
      LinearStatistics& request = requests[name];
      if (needs.grads) {
        const int64_t cells = linear.out * linear.in;
        statistics.device_grads =
            backend_.device().Allocate(static_cast<size_t>(cells) * sizeof(float), "scratch");
        const TensorView grads = statistics.device_grads.View(DType::kF32, cells);
        backend_.device().ZeroAsync(grads, stream);
        request.dense_grads = grads.Reshape({linear.out, linear.in});
      }
      if (!needs.inputs) continue;
      statistics.input_squares.assign(static_cast<size_t>(linear.in), 0.0);
      request.input_squares = &statistics.input_squares;
    }
  }
  model.CollectStatistics(requests);
}

void TopologyUpdater::ReduceGrads(const std::string& name, Statistics* statistics, Stream& stream) {
  const int64_t bytes = static_cast<int64_t>(statistics->device_grads.bytes());
  const int64_t cells = bytes / static_cast<int64_t>(sizeof(float));
  const TensorView grads = statistics->device_grads.View(DType::kF32, cells);
  event_->Record(stream);
  communicator_.AllReduce(grads, ReduceOp::kSum, *event_)->Wait(stream);
  if (communicator_.size() > 1) bytes_ += bytes;
  statistics->grads.resize(static_cast<size_t>(cells));
  backend_.device().CopyAsync(TensorView(statistics->grads.data(), DType::kF32, {cells}), grads,
                              stream);
  stream.Synchronize();
  statistics->device_grads = DeviceBuffer();
}

void TopologyUpdater::FinishCollecting(Model& model, Stream& stream) {
  if (statistics_.empty()) return;
  model.CollectStatistics({});
  for (auto& [name, statistics] : statistics_) {
    if (statistics.device_grads.bytes() > 0) ReduceGrads(name, &statistics, stream);
    if (statistics.input_squares.empty()) continue;
    communicator_.AllReduceHost(statistics.input_squares, ReduceOp::kSum);
    if (communicator_.size() > 1) {
      bytes_ += static_cast<int64_t>(statistics.input_squares.size() * sizeof(double));
    }
  }
}

std::vector<float> TopologyUpdater::GatherMaster(const TrainingState& state, int parameter,
                                                 Stream& stream) {
  const std::vector<std::byte> bytes =
      GatherSegment(state.buffer(), parameter, StateKind::kMaster, communicator_, stream);
  if (state.buffer().layout().shards() > 1) bytes_ += static_cast<int64_t>(bytes.size());
  const auto* floats = reinterpret_cast<const float*>(bytes.data());
  return {floats, floats + bytes.size() / sizeof(float)};
}

void TopologyUpdater::PerturbValues(TrainingState& state, Stream& stream) {
  double values = 0, grads = 0;
  for (auto& [name, statistics] : statistics_) {
    const int parameter = IndexOf(state.parameters(), name);
    unperturbed_[name] = GatherMaster(state, parameter, stream);
    values += SumSquares(unperturbed_[name]);
    grads += SumSquares(statistics.grads);
  }
  perturbation_ = grads > 0 ? kRelativePerturbation * std::sqrt(values / grads) : 1;
  for (auto& [name, statistics] : statistics_) {
    const int parameter = IndexOf(state.parameters(), name);
    std::vector<float> moved = unperturbed_[name];
    const std::vector<int64_t> cells = state.parameters()[parameter].layout.LogicalIndices();
    for (size_t slot = 0; slot < cells.size(); ++slot) {
      if (cells[slot] < 0) continue;
      moved[slot] += static_cast<float>(perturbation_ * statistics.grads[cells[slot]]);
    }
    ScatterSegment(state.buffer(), parameter, StateKind::kMaster,
                   std::as_bytes(std::span<const float>(moved)), stream);
    statistics.hessian_grads = std::move(statistics.grads);  // g, until H g is known
  }
  state.model().ValuesChanged();
}

void TopologyUpdater::FinishHessian(TrainingState& state, Stream& stream) {
  for (auto& [name, statistics] : statistics_) {
    std::vector<float>& before = statistics.hessian_grads;
    for (size_t cell = 0; cell < before.size(); ++cell) {
      const float moved = statistics.grads[cell];
      statistics.grads[cell] = before[cell];
      before[cell] = static_cast<float>((moved - before[cell]) / perturbation_);
    }
    ScatterSegment(state.buffer(), IndexOf(state.parameters(), name), StateKind::kMaster,
                   std::as_bytes(std::span<const float>(unperturbed_[name])), stream);
  }
  unperturbed_.clear();
  state.model().ValuesChanged();
}

TopologyWeight TopologyUpdater::Weigh(const TrainingState& state, const TopologyEntry& entry,
                                      const LinearSpec& linear, Stream& stream) {
  const std::string name = linear.name + ".weight";
  const int index = IndexOf(state.parameters(), name);
  const Parameter& parameter = state.parameters()[index];
  const Statistics& statistics = statistics_[name];
  const std::vector<float> values = GatherMaster(state, index, stream);
  const ScoreInputs inputs = {.parameter = &parameter,
                              .seed = run_.seed,
                              .values = values,
                              .grads = statistics.grads,
                              .hessian_grads = statistics.hessian_grads,
                              .input_squares = statistics.input_squares};
  TopologyWeight weight{.name = name,
                        .shape = ShapeOf(linear, entry.spec),
                        .layout = parameter.layout,
                        .keep_scores = StoredScores(*FindCriterion(entry.spec.criterion), inputs)};
  if (entry.rule->growth == Growth::kGradient) {
    weight.grow_scores = GradientScores(parameter.layout, statistics.grads);
  }
  return weight;
}

TopologyUpdater::Update TopologyUpdater::Propose(const TrainingState& state, int64_t step,
                                                 Stream& stream) {
  const PhaseSpec& phase = run_.phases[phase_];
  Update update;
  for (const TopologyEntry& entry : entries_) {
    const auto action = entry.rule->action(entry.spec, TimelineOf(phase), step - phase.first_step);
    if (!action) continue;
    if (!update.due) update.layouts = state.Layouts();
    update.due = true;
    if (update.rules.find(entry.rule->name) == std::string::npos) {
      update.rules += (update.rules.empty() ? "" : ", ") + std::string(entry.rule->name);
    }
    std::vector<TopologyWeight> weights;
    for (const LinearSpec& linear : entry.linears) {
      weights.push_back(Weigh(state, entry, linear, stream));
    }
    const std::vector<SparseLayout> layouts =
        ProposeLayouts(weights, entry.spec, *action, entry.rule->growth, run_.seed, step);
    for (size_t i = 0; i < weights.size(); ++i) {
      const TopologyChange change = CountChange(weights[i].layout, layouts[i]);
      update.dropped += change.dropped;
      update.grown += change.grown;
      update.layouts.insert_or_assign(weights[i].name, layouts[i]);
    }
  }
  statistics_.clear();
  return update;
}

int64_t TopologyUpdater::TakeBytes() { return std::exchange(bytes_, 0); }

}  // namespace filigree
