#include "trainer/topology_updater.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/base/log.h"
#include "trainer/master_weights.h"
#include "trainer/topology/criterion.h"

namespace filigree {
namespace {

// Of the values' norm: how far GraSP's finite difference moves them along the gradient.
constexpr double kRelativePerturbation = 1e-2;
constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

// Norm over the cells of one array.
double SumSquares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

}  // namespace

int64_t LayoutCheckBytes(const std::vector<Parameter>& parameters, int ranks) {
  return ranks == 1 ? 0 : 2 * static_cast<int64_t>(parameters.size() * sizeof(int64_t));
}

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
  linears_ = LinearSpecs(run_.model);
  entries_ = EntriesOf(linears_, run_.phases[phase]);
  statistics_.clear();
}

StatisticsNeeds TopologyUpdater::NeedsAt(int64_t step) const {
  const PhaseSpec& phase = run_.phases[phase_];
  return NeedsOf(entries_, TimelineOf(phase), step - phase.first_step);
}

void TopologyUpdater::StartCollecting(Model& model, int64_t step, Stream& stream) {
  const StatisticsNeeds needs = NeedsAt(step);
  if (!needs.any()) return;
  std::map<std::string, LinearStatistics> requests;
  for (const TopologyEntry& entry : entries_) {
    if (!RowOf(entry.spec).has_weight) continue;
    for (const LinearSpec& linear : entry.linears) {
      const std::string name = linear.name + ".weight";
      WeightStatistics& statistics = statistics_[name];
      LinearStatistics& request = requests[name];
      if (needs.grads) {
        const int64_t cells = linear.out * linear.in;
        statistics.grads =
            backend_.device().Allocate(static_cast<size_t>(cells) * sizeof(float), "scratch");
        const TensorView grads = statistics.grads.View(DType::kF32, cells);
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

std::vector<TensorView> TopologyUpdater::Collected() {
  std::vector<TensorView> arrays;
  for (auto& [name, statistics] : statistics_) {
    const auto cells = static_cast<int64_t>(statistics.grads.bytes() / sizeof(float));
    if (cells > 0) arrays.push_back(statistics.grads.View(DType::kF32, cells));
    if (statistics.input_squares.empty()) continue;
    arrays.push_back(TensorView(statistics.input_squares.data(), DType::kF64,
                                {static_cast<int64_t>(statistics.input_squares.size())}));
  }
  return arrays;
}

void TopologyUpdater::CountSummed(int64_t bytes) {
  const int64_t samples = run_.phases[phase_].batch.sequences_per_step();
  const int ranks = communicator_.size();
  if (ranks == 1) return;
  bytes_ += bytes * (sums_in_tree_ ? SampleTree::NodesSent(samples, ranks) : 1);
}

void TopologyUpdater::ReduceGrads(const WeightStatistics& statistics, Stream& stream) {
  const int64_t bytes = static_cast<int64_t>(statistics.grads.bytes());
  const TensorView grads = statistics.grads.View(DType::kF32, bytes / kFloat);
  if (!sums_in_tree_) {
    event_->Record(stream);
    communicator_.AllReduce(grads, ReduceOp::kSum, *event_)->Wait(stream);
  }
  CountSummed(bytes);
}

std::vector<float> TopologyUpdater::Download(const DeviceBuffer& buffer, Stream& stream) {
  const int64_t count = static_cast<int64_t>(buffer.bytes()) / kFloat;
  std::vector<float> host(static_cast<size_t>(count));
  backend_.device().CopyAsync(TensorView(host.data(), DType::kF32, {count}),
                              buffer.View(DType::kF32, count), stream);
  stream.Synchronize();
  return host;
}

void TopologyUpdater::Upload(const std::vector<float>& values, DeviceBuffer* buffer,
                             Stream& stream) {
  const auto count = static_cast<int64_t>(values.size());
  if (buffer->bytes() == 0) {
    *buffer = backend_.device().Allocate(values.size() * sizeof(float), "scratch");
  }
  backend_.device().CopyAsync(buffer->View(DType::kF32, count),
                              ConstTensorView(values.data(), DType::kF32, {count}), stream);
  stream.Synchronize();
}

void TopologyUpdater::FinishCollecting(Model& model, Stream& stream) {
  if (statistics_.empty()) return;
  model.CollectStatistics({});
  for (auto& [name, statistics] : statistics_) {
    if (statistics.grads.bytes() > 0) ReduceGrads(statistics, stream);
    if (statistics.input_squares.empty()) continue;
    if (!sums_in_tree_) communicator_.AllReduceHost(statistics.input_squares, ReduceOp::kSum);
    CountSummed(static_cast<int64_t>(statistics.input_squares.size() * sizeof(double)));
  }
}

void TopologyUpdater::PerturbValues(TrainingState& state, Stream& stream) {
  double values = 0, grads = 0;
  for (auto& [name, statistics] : statistics_) {
    const int parameter = IndexOf(state.parameters(), name);
    Unperturbed& before = unperturbed_[name];
    before.values = GatherMaster(state, parameter, communicator_, stream, &bytes_);
    before.grads = Download(statistics.grads, stream);
    statistics.grads = DeviceBuffer();
    values += SumSquares(before.values);
    grads += SumSquares(before.grads);
  }
  perturbation_ = grads > 0 ? kRelativePerturbation * std::sqrt(values / grads) : 1;
  for (const auto& [name, before] : unperturbed_) {
    const int parameter = IndexOf(state.parameters(), name);
    std::vector<float> moved = before.values;
    const std::vector<int64_t> cells = state.parameters()[parameter].layout.LogicalIndices();
    for (size_t slot = 0; slot < cells.size(); ++slot) {
      if (cells[slot] < 0) continue;
      moved[slot] += static_cast<float>(perturbation_ * before.grads[cells[slot]]);
    }
    ScatterSegment(state.buffer(), parameter, StateKind::kMaster,
                   std::as_bytes(std::span<const float>(moved)), stream);
  }
  state.model().ValuesChanged();
}

void TopologyUpdater::FinishHessian(TrainingState& state, Stream& stream) {
  // Either pass may have been discarded.
  if (unperturbed_.empty()) statistics_.clear();
  for (auto& [name, before] : unperturbed_) {
    if (const auto found = statistics_.find(name); found != statistics_.end()) {
      WeightStatistics& statistics = found->second;
      std::vector<float> hessian = Download(statistics.grads, stream);
      for (size_t cell = 0; cell < hessian.size(); ++cell) {
        hessian[cell] = static_cast<float>((hessian[cell] - before.grads[cell]) / perturbation_);
      }
      Upload(before.grads, &statistics.grads, stream);
      Upload(hessian, &statistics.hessian_grads, stream);
    }
    ScatterSegment(state.buffer(), IndexOf(state.parameters(), name), StateKind::kMaster,
                   std::as_bytes(std::span<const float>(before.values)), stream);
  }
  unperturbed_.clear();
  state.model().ValuesChanged();
}

bool TopologyUpdater::LacksStatistics(const TopologyEntry& entry) const {
  return statistics_.empty() && (FindCriterion(entry.spec.criterion)->needs_statistics() ||
                                 entry.rule->growth == Growth::kGradient);
}

void TopologyUpdater::ProposeEntry(const TrainingState& state, const TopologyEntry& entry,
                                   const TopologyAction& action, int64_t step, Stream& stream,
                                   Update* update) {
  const Criterion& own = *FindCriterion(entry.spec.criterion);
  const bool lacks = LacksStatistics(entry);
  const Criterion& criterion =
      own.needs_statistics() && lacks ? *FindCriterion("magnitude") : own;
  std::vector<TopologyWeight> weights;
  std::vector<StateScores::Weight> scored;
  for (const LinearSpec& linear : entry.linears) {
    const std::string name = linear.name + ".weight";
    const int index = IndexOf(state.parameters(), name);
    const auto found = statistics_.find(name);
    scored.push_back({index, found == statistics_.end() ? nullptr : &found->second});
    weights.push_back({.name = name,
                       .shape = ShapeOf(linear, entry.spec),
                       .layout = state.parameters()[index].layout});
  }
  StateScores scores(state, std::move(scored), criterion,
                     entry.rule->growth == Growth::kGradient && !lacks, run_.seed, communicator_,
                     backend_, stream, &bytes_);
  const std::vector<SparseLayout> layouts =
      ProposeLayouts(weights, entry.spec, action, entry.rule->growth, run_.seed, step, scores,
                     backend_, stream, &update->prepared);
  for (size_t i = 0; i < weights.size(); ++i) {
    const TopologyChange change = CountChange(weights[i].layout, layouts[i]);
    update->dropped += change.dropped;
    update->grown += change.grown;
    update->layouts.insert_or_assign(weights[i].name, layouts[i]);
  }
}

TopologyUpdater::Update TopologyUpdater::Propose(const TrainingState& state, int64_t step,
                                                 Stream& stream) {
  const PhaseSpec& phase = run_.phases[phase_];
  Update update;
  for (const TopologyEntry& entry : entries_) {
    auto action = entry.rule->action(entry.spec, TimelineOf(phase), step - phase.first_step);
    if (!action) continue;
    if (LacksStatistics(entry)) {
      LogInfo("step " + std::to_string(step) + ": its gradients were not finite, so rule " +
              entry.spec.rule + " prunes by magnitude and moves nothing by gradient");
      if (entry.rule->growth == Growth::kGradient) action->drop_fraction = 0;
    }
    if (!update.due) update.layouts = state.Layouts();
    update.due = true;
    if (update.rules.find(entry.rule->name) == std::string::npos) {
      update.rules += (update.rules.empty() ? "" : ", ") + std::string(entry.rule->name);
    }
    ProposeEntry(state, entry, *action, step, stream, &update);
  }
  statistics_.clear();
  return update;
}

int64_t TopologyUpdater::TakeBytes() { return std::exchange(bytes_, 0); }

}  // namespace filigree
