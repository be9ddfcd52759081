#include "trainer/topology_traffic.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "trainer/model/model.h"
#include "trainer/sample_tree.h"
#include "trainer/step_traffic.h"
#include "trainer/topology/plan.h"
#include "trainer/topology_scores.h"
#include "trainer/topology_updater.h"
#include "trainer/state_layout.h"

namespace filigree {
namespace {

constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

// The stored units of one entry's weights as its events pass.
class EntryCounts {
 public:
  explicit EntryCounts(const TopologyEntry& entry) : entry_(entry), shapes_(ShapesOf(entry)) {
    units_ = DrawnCounts(shapes_, entry.spec, DrawnSparsity(entry));
    area_ = StoresBlocks(entry.spec) ? entry.spec.block_out * entry.spec.block_in : 1;
  }

  int64_t elements(size_t weight) const { return units_[weight] * area_; }
  int64_t elements() const {
    return std::accumulate(units_.begin(), units_.end(), int64_t{0}) * area_;
  }

  // True where the event changes a layout.
  bool Apply(const TopologyAction& action) {
    const std::vector<int64_t> before = units_;
    const Distribution& row = *FindDistribution(entry_.spec.distribution);
    units_ = row.counts ? row.counts(shapes_, action.sparsity) : UnderOneThreshold(action.sparsity);
    bool changed = false;
    for (size_t i = 0; i < units_.size(); ++i) {
      if (entry_.rule->growth == Growth::kNone) units_[i] = std::min(units_[i], before[i]);
      const double wanted = std::round(action.drop_fraction * static_cast<double>(units_[i]));
      changed |= units_[i] != before[i] || (wanted > 0 && units_[i] < shapes_[i].units);
    }
    return changed;
  }

 private:
  // The same share of each weight, the total exact.
  std::vector<int64_t> UnderOneThreshold(double sparsity) const {
    int64_t total = 0, floors = 0;
    for (const WeightShape& shape : shapes_) total += shape.units;
    for (const int64_t floor : GlobalFloors(shapes_, entry_.spec)) floors += floor;
    const int64_t target =
        std::max<int64_t>(std::llround((1 - sparsity) * static_cast<double>(total)), floors);
    const int64_t stored = std::accumulate(units_.begin(), units_.end(), int64_t{0});
    if (target >= stored) return units_;
    std::vector<int64_t> shares;
    int64_t shared = 0, seen = 0;
    for (const WeightShape& shape : shapes_) {
      seen += shape.units;
      const auto upto = static_cast<int64_t>(
          static_cast<double>(target) * (static_cast<double>(seen) / static_cast<double>(total)));
      shares.push_back((seen == total ? target : upto) - shared);
      shared += shares.back();
    }
    return shares;
  }

  const TopologyEntry& entry_;
  const std::vector<WeightShape> shapes_;
  std::vector<int64_t> units_;
  int64_t area_ = 1;
};

// Walks a phase from event to event.
class Course {
 public:
  Course(const RunSpec& run, int phase, int ranks, const std::vector<Parameter>& parameters,
         const Device& device)
      : run_(run),
        index_(phase),
        phase_(run.phases[phase]),
        ranks_(ranks),
        parameters_(parameters),
        device_(device),
        entries_(EntriesOf(LinearSpecs(run.model), phase_)),
        segments_(SegmentCounts(parameters)) {
    for (const TopologyEntry& entry : entries_) counts_.emplace_back(entry);
    const bool narrow = phase_.optimizer.state.bf16 && device.compute_dtype() != DType::kF32;
    holds_master_ = (run.zero_stage == 0 || ranks == 1) && !narrow;
    for (size_t i = 0; i < parameters.size(); ++i) places_[parameters[i].name] = i;
    if (MovesTopology(phase_)) FillSegments();
  }

  TopologyTraffic Walk() {
    for (int64_t step = 0; step <= phase_.steps; ++step) {
      Visit(step);
      if (step == phase_.steps) break;
      const int64_t bytes = OrdinaryStep();
      if (traffic_.steps.empty() || traffic_.steps.back().bytes != bytes) {
        traffic_.steps.push_back({phase_.first_step + step, bytes});
      }
    }
    return std::move(traffic_);
  }

 private:
  FlatLayout Layout() const {
    return LayOutSegments(SegmentsOf(parameters_, segments_), run_, ranks_);
  }

  int64_t OrdinaryStep() {
    // Segments rarely change: one layout serves until they do.
    if (step_bytes_ < 0) {
      step_bytes_ = PredictStepBytes(run_, index_, ranks_, Layout(), device_).total();
    }
    return step_bytes_;
  }

  void FillSegments() {
    for (size_t e = 0; e < entries_.size(); ++e) {
      // Weights that stand still keep the counts they were drawn with; low_rank and cola have none.
      if (!MovesTopology(*entries_[e].rule)) continue;
      for (size_t i = 0; i < entries_[e].linears.size(); ++i) {
        segments_[places_.at(entries_[e].linears[i].name + ".weight")] = counts_[e].elements(i);
      }
    }
    step_bytes_ = -1;
  }

  // Bytes that summing the statistics exchanges.
  int64_t Statistics(const StatisticsNeeds& needs) const {
    int64_t bytes = 0;
    for (const TopologyEntry& entry : entries_) {
      if (!RowOf(entry.spec).has_weight) continue;
      for (const LinearSpec& linear : entry.linears) {
        if (needs.grads) bytes += linear.out * linear.in * kFloat;
        if (needs.inputs) bytes += linear.in * static_cast<int64_t>(sizeof(double));
      }
    }
    return bytes;
  }

  // Stored elements of an entry's weights.
  std::vector<int64_t> Elements(size_t entry) const {
    std::vector<int64_t> elements;
    for (size_t i = 0; i < entries_[entry].linears.size(); ++i) {
      elements.push_back(counts_[entry].elements(i));
    }
    return elements;
  }

  // The pass whose gradients only the statistics of a phase's start are for: a step without values
  // and without the loss's reduction, but with the norm's.
  int64_t Probe() const {
    const ExchangedBytes step = PredictStepBytes(run_, index_, ranks_, Layout(), device_);
    return step.total() - step.sparsified_values - step.dense_values -
           (phase_.distillation.on() ? 2 : 1) * static_cast<int64_t>(sizeof(double));
  }

  void Visit(int64_t step) {
    const Timeline timeline = TimelineOf(phase_);
    const StatisticsNeeds needs = NeedsOf(entries_, timeline, step);
    bool due = false, changed = false;
    int64_t bytes = 0;
    const bool sharded = run_.zero_stage == 1 && ranks_ > 1;
    const int64_t passes = needs.hessian ? 2 : 1;
    for (size_t e = 0; e < entries_.size(); ++e) {
      if (sharded && needs.hessian) bytes += counts_[e].elements() * kFloat;
      const auto action = entries_[e].rule->action(entries_[e].spec, timeline, step);
      if (!action) continue;
      due = true;
      if (sharded) bytes += counts_[e].elements() * kFloat;
    }
    if (!due) return;
    int64_t selection = 0, indices = 0;  // entries take turns, but for what they make
    for (size_t e = 0; e < entries_.size(); ++e) {
      if (!entries_[e].rule->action(entries_[e].spec, timeline, step)) continue;
      selection = std::max(selection, SelectionBytes(entries_[e], Elements(e), holds_master_));
    }
    const int64_t state = std::accumulate(segments_.begin(), segments_.end(), int64_t{0});
    if (ranks_ > 1 && step == 0 && needs.any()) bytes += passes * Probe();
    for (size_t e = 0; e < entries_.size(); ++e) {
      const auto action = entries_[e].rule->action(entries_[e].spec, timeline, step);
      if (!action) continue;
      changed |= counts_[e].Apply(*action);
      indices += IndexBytes(entries_[e], Elements(e));
    }
    if (changed) FillSegments();
    const int64_t arrays = TracksAges(run_, index_) ? 4 : 3;  // master, m, v, born
    if (changed && sharded) bytes += arrays * state * kFloat;
    const int64_t sums = SumsInTree(run_, device_)
                             ? SampleTree::NodesSent(phase_.batch.sequences_per_step(), ranks_)
                             : (ranks_ > 1 ? 1 : 0);
    bytes += passes * sums * Statistics(needs) + LayoutCheckBytes(parameters_, ranks_);
    traffic_.updates.push_back({phase_.first_step + step, bytes});
    const int64_t collected = needs.grads ? passes * Statistics({.grads = true}) : 0;
    traffic_.selection_bytes =
        std::max(traffic_.selection_bytes, collected + selection + indices);
    traffic_.rebuilds |= changed;
  }

  const RunSpec& run_;
  const int index_;
  const PhaseSpec& phase_;
  const int ranks_;
  const std::vector<Parameter>& parameters_;
  const Device& device_;
  const std::vector<TopologyEntry> entries_;
  std::vector<EntryCounts> counts_;       // of entries_
  std::vector<int64_t> segments_;         // of parameters_
  std::map<std::string, size_t> places_;  // of parameters_ by name
  bool holds_master_ = true;  // HoldsWhole, of the master
  int64_t step_bytes_ = -1;               // at these segments; -1: not counted yet
  TopologyTraffic traffic_;
};

}  // namespace

TopologyTraffic PlanTopologyTraffic(const RunSpec& run, int phase, int ranks,
                                    const std::vector<Parameter>& parameters,
                                    const Device& device) {
  return Course(run, phase, ranks, parameters, device).Walk();
}

}  // namespace filigree
