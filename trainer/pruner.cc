#include "trainer/pruner.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "kernels/base/log.h"
#include "kernels/base/math.h"
#include "trainer/master_columns.h"
#include "trainer/model/model.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/second_order.h"
#include "trainer/topology/plan.h"
#include "trainer/unit_arrays.h"

namespace filigree {
namespace {

int64_t UnitsInBlock(const PruningSpec& spec, int64_t extent) {
  return std::max<int64_t>(spec.update_block / extent, 2);
}

// Inner products are of columns from one multiple of this to another: products are fast where bf16
// rows begin at multiples of 16 bytes, and the fewer sizes there are the fewer need an algorithm.
constexpr int64_t kReadAlignment = 8;

struct Columns {
  int64_t begin = 0, count = 0;
};
// Of `columns` ones, what is read for [begin, end).
Columns ReadFor(int64_t begin, int64_t end, int64_t columns) {
  const int64_t first = begin / kReadAlignment * kReadAlignment;
  return {first, std::min(AlignUp(end, kReadAlignment), columns) - first};
}

// What two matrices share that multiply the same activations: a layer's attention or feed-forward
// block, and the set of units that its columns are.
std::pair<std::string, int> InputOf(const std::string& weight, const ParameterUnits& units) {
  const size_t linear = weight.rfind('.', weight.rfind('.') - 1);
  return {weight.substr(0, linear), units.columns.set};
}

}  // namespace

int64_t CollectedBytes(const ModelSpec& model, const PruningSpec& spec) {
  if (!spec.update_remaining || spec.removal == PruningSpec::Removal::kProgressive) return 0;
  const UnitTable table(model);
  std::set<std::pair<std::string, int>> inputs;
  int64_t cells = 0;
  for (const LinearSpec& linear : LinearSpecs(model)) {
    const std::string weight = linear.name + ".weight";
    const auto found = table.parameters().find(weight);
    if (found == table.parameters().end() || found->second.columns.set < 0) continue;
    if (!inputs.insert(InputOf(weight, found->second)).second) continue;
    const int64_t extent = found->second.columns.extent;
    const int64_t block = UnitsInBlock(spec, extent) * extent;
    for (int64_t begin = 0; begin < linear.in; begin += block) {
      const int64_t width = ReadFor(begin, std::min(begin + block, linear.in), linear.in).count;
      cells += width * width;
    }
  }
  return cells * static_cast<int64_t>(sizeof(float));
}

void Pruner::BeginPhase(int phase) {
  phase_ = phase;
  ramp_.reset();
  const bool prunes = run_.phases[phase].pruning.has_value();
  if (!prunes && !progress_) return;
  table_.emplace(run_.model);
  const auto units = static_cast<size_t>(table_->unit_count());
  if (!progress_) {
    progress_.emplace();
    progress_->zero_at.assign(units, kUnitStays);
  }
  CHECK_EQ(progress_->zero_at.size(), units);
  if (progress_->phase != phase) KeepWhatShrinks(run_.phases[phase].first_step);
  if (!prunes) return;
  if (progress_->phase != phase) {
    WarnOfFewEvents();
    progress_->phase = phase;
    progress_->batches = 0;
    progress_->done = false;
    progress_->smoothed.assign(units * kSmoothed, 0.0);
    progress_->initial_parameters = LiveParameters();
  } else if (LiveParameters() > spec().target_parameters) {
    progress_->done = false;  // the target or the phase's length may have changed since
  }
  ramp_.emplace(spec(), TimelineOf(run_.phases[phase]), progress_->initial_parameters);
}

// A phase that did not last until units were zero leaves them.
void Pruner::KeepWhatShrinks(int64_t step) {
  for (int64_t& zero_at : progress_->zero_at) {
    if (zero_at > step) zero_at = kUnitStays;
  }
}

// A run whose kinds shrink alike reaches the target (ValidatePruning); others need more units.
void Pruner::WarnOfFewEvents() const {
  if (spec().units_per_event == 0) return;
  const RampReach reach = ReachOf(run_.model, spec(), TimelineOf(run_.phases[phase_]),
                                  UnitOrder::kSmallestFirst);
  if (reach.reached()) return;
  LogWarning("phase " + run_.phases[phase_].name + ": pruning units_per_event = " +
             std::to_string(spec().units_per_event) +
             " may not come to target_parameters = " + std::to_string(spec().target_parameters) +
             ": where scores choose the smallest units, " + std::to_string(reach.events) +
             " events leave " + std::to_string(reach.parameters) +
             " parameters; to be sure, raise it to " + std::to_string(reach.units_per_event) +
             ", lower interval or leave it out");
}

std::vector<bool> Pruner::UnitsThatStay() const {
  std::vector<bool> stays;
  for (const int64_t zero_at : progress_->zero_at) stays.push_back(zero_at == kUnitStays);
  return stays;
}

std::array<int64_t, kUnitKinds> Pruner::LiveUnits() const {
  std::array<int64_t, kUnitKinds> live = {};
  const std::vector<int64_t> counts = LiveCounts(*table_, progress_->zero_at);
  for (size_t i = 0; i < counts.size(); ++i) {
    live[static_cast<size_t>(table_->sets()[i].kind)] += counts[i];
  }
  return live;
}

int64_t Pruner::LiveParameters() const {
  return CountParameters(ModelOf(run_.model, *table_, LiveCounts(*table_, progress_->zero_at)));
}

void Pruner::Choose(const TrainingState& state, int64_t step, Stream& stream) {
  // What begins to shrink now is gone when it has shrunk, which the phase must last for.
  const int64_t effect = progressive() ? step + spec().shrink_steps : step;
  if (effect > run_.phases[phase_].steps) {
    progress_->done = true;
    return;
  }
  std::vector<double> w_squares(static_cast<size_t>(table_->unit_count()), 0.0);
  if (criterion().needs_weights) {
    const std::vector<UnitSums> sums =
        SumUnits(state, *table_, UnitCells::kAll, communicator_, backend_, stream, &bytes_);
    for (size_t unit = 0; unit < sums.size(); ++unit) w_squares[unit] = sums[unit].w_squares;
  }
  const std::vector<double> scores =
      SaliencyScores(criterion(), *table_, *progress_, w_squares, tokens_per_step());
  const bool finishing = step >= ramp_->last_step();
  chosen_ = ChooseUnits(run_.model, *table_, scores, UnitsThatStay(), spec(),
                        ramp_->AllowedAt(effect), finishing);
  progress_->done = finishing && chosen_.empty();
}

// The blocks of one matrix's columns that chosen units are in. They are counted in units that stay
// until this event: the same ones whether or not those before have been compacted away.
void Pruner::AddBlocks(const std::string& weight, const ParameterUnits& units) {
  const UnitSet& set = table_->sets()[units.columns.set];
  const int64_t extent = units.columns.extent;
  const int64_t units_a_block = UnitsInBlock(spec(), extent);
  std::vector<int64_t> starts;  // the first unit of each block, by its index in the set
  for (int64_t i = 0, live = 0; i < set.count; ++i) {
    if (progress_->zero_at[static_cast<size_t>(set.first + i)] != kUnitStays) continue;
    if (live++ % units_a_block == 0) starts.push_back(i);
  }
  std::map<int64_t, std::vector<int64_t>> gone;  // by the first unit of their block
  for (const int64_t unit : chosen_) {
    const int64_t i = unit - set.first;
    if (i < 0 || i >= set.count) continue;
    const int64_t start = *std::prev(std::upper_bound(starts.begin(), starts.end(), i));
    for (int64_t c = 0; c < extent; ++c) gone[start].push_back((i - start) * extent + c);
  }
  const std::pair<std::string, int> input = InputOf(weight, units);
  for (auto& [start, columns] : gone) {
    const int64_t begin = start * extent;
    const auto shared = std::ranges::find_if(blocks_, [&](const Block& block) {
      return block.begin == begin && block.input == input;
    });
    if (shared != blocks_.end()) {
      shared->weights.push_back(weight);
      continue;
    }
    std::sort(columns.begin(), columns.end());
    const auto next = std::upper_bound(starts.begin(), starts.end(), start);
    const int64_t end = next == starts.end() ? set.count : *next;
    const Columns read = ReadFor(begin, end * extent, set.count * extent);
    blocks_.push_back({.input = input,
                       .weights = {weight},
                       .begin = begin,
                       .size = (end - start) * extent,
                       .gone = std::move(columns),
                       .read = read.begin,
                       .width = read.count});
  }
}

// Asks the coming backward passes for what is needed of them.
void Pruner::Collect(TrainingState& state, bool inputs, Stream& stream) {
  if (spec().update_remaining && !progressive() && !chosen_.empty()) {
    for (const LinearSpec& linear : LinearSpecs(run_.model)) {
      const auto found = table_->parameters().find(linear.name + ".weight");
      if (found == table_->parameters().end() || found->second.columns.set < 0) continue;
      AddBlocks(found->first, found->second);
    }
  }
  std::map<std::string, LinearStatistics> requests;
  int64_t cells = 0;
  for (Block& block : blocks_) {
    block.gram = cells;
    cells += block.width * block.width;
  }
  if (cells > 0) {
    grams_ = backend_.device().Allocate(static_cast<size_t>(cells) * sizeof(float), "scratch");
    const TensorView grams = grams_.View(DType::kF32, cells);
    backend_.device().ZeroAsync(grams, stream);
    for (const Block& block : blocks_) {
      const TensorView gram = grams.Range(block.gram, block.width * block.width);
      requests[block.weights.front()].input_grams.push_back(
          {.begin = block.read, .gram = gram.Reshape({block.width, block.width})});
    }
  }
  if (inputs) {
    for (const LinearSpec& linear : LinearSpecs(run_.model)) {
      const std::string weight = linear.name + ".weight";
      input_squares_[weight].assign(static_cast<size_t>(linear.in), 0.0);
      requests[weight].input_squares = &input_squares_[weight];
    }
  }
  collecting_ = !requests.empty();
  if (collecting_) state.model().CollectStatistics(requests);
}

void Pruner::BeforeStep(TrainingState& state, int64_t step, Stream& stream) {
  if (!active()) return;
  const int64_t after = InPhase(step) + 1;
  if (ramp_->IsEvent(after) && progress_->batches > 0) Choose(state, after, stream);
  const bool inputs = criterion().needs_inputs && ramp_->Gathers(after);
  if (inputs || !chosen_.empty()) Collect(state, inputs, stream);
}

// Of each unit, over the tokens of all ranks: x^2 of the columns that its matrices read.
std::vector<double> Pruner::InputSquares() {
  std::vector<double> squares(static_cast<size_t>(table_->unit_count()), 0.0);
  for (auto& [weight, columns] : input_squares_) {
    communicator_.AllReduceHost(columns, ReduceOp::kSum);
    if (communicator_.size() > 1) bytes_ += static_cast<int64_t>(columns.size() * sizeof(double));
    const auto found = table_->parameters().find(weight);
    if (found == table_->parameters().end() || found->second.columns.set < 0) continue;
    const AxisUnits& axis = found->second.columns;
    const int64_t first = table_->sets()[axis.set].first;
    for (size_t c = 0; c < columns.size(); ++c) {
      squares[static_cast<size_t>(first + static_cast<int64_t>(c) / axis.extent)] += columns[c];
    }
  }
  input_squares_.clear();
  return squares;
}

void Pruner::GatherSaliency(const TrainingState& state, Stream& stream) {
  const std::vector<double> input_squares = InputSquares();
  SaliencyBatch batch;
  const std::vector<UnitSums> sums =
      SumUnits(state, *table_, UnitCells::kGate, communicator_, backend_, stream, &bytes_);
  for (size_t unit = 0; unit < sums.size(); ++unit) {
    batch.units.push_back({.gate = sums[unit].gw,
                           .gate_squares = sums[unit].gw * sums[unit].gw,
                           .cell_squares = sums[unit].gw_squares,
                           .input_squares = input_squares[unit]});
  }
  Smooth(batch, spec().smoothing, spec().outlier_factor, &*progress_);
}

// Of all blocks, over the tokens of all ranks.
std::vector<float> Pruner::Grams(Stream& stream) {
  const auto cells = static_cast<int64_t>(grams_.bytes() / sizeof(float));
  std::vector<float> grams(static_cast<size_t>(cells));
  if (cells == 0) return grams;
  const TensorView view = grams_.View(DType::kF32, cells);
  const std::unique_ptr<Event> ready = backend_.device().NewEvent();
  ready->Record(stream);
  communicator_.AllReduce(view, ReduceOp::kSum, *ready)->Wait(stream);
  if (communicator_.size() > 1) bytes_ += static_cast<int64_t>(view.bytes());
  backend_.device().CopyAsync(TensorView(grams.data(), DType::kF32, {cells}), view, stream);
  stream.Synchronize();
  return grams;
}

// The host solves each block's small system; the matrices change where they lie.
void Pruner::Compensate(TrainingState& state, Stream& stream) {
  const std::vector<float> grams = Grams(stream);
  std::vector<ColumnUpdate> updates(blocks_.size());
#pragma omp parallel for schedule(dynamic)
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    std::vector<float> gram;  // of the block's own columns
    const int64_t lead = block.begin - block.read;
    for (int64_t i = 0; i < block.size; ++i) {
      const auto row = grams.begin() + block.gram + (lead + i) * block.width + lead;
      gram.insert(gram.end(), row, row + block.size);
    }
    updates[b] = SolveColumns(gram, block.size, block.gone, spec().update_damping);
  }
  MasterColumns columns(state, communicator_, backend_, stream, &bytes_);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (const std::string& weight : blocks_[b].weights) {
      columns.Add(weight, blocks_[b].begin, blocks_[b].gone, updates[b]);
    }
  }
  columns.Apply();
}

// The chosen units are on their way out.
void Pruner::Mark(int64_t step) {
  const int64_t zero_at = progressive() ? step + spec().shrink_steps : step;
  for (const int64_t unit : chosen_) progress_->zero_at[static_cast<size_t>(unit)] = zero_at;
}

// Whether any unit is on its way out after step `step`, or due to be zero then.
bool Pruner::AnyShrinks(int64_t step) const {
  return std::any_of(progress_->zero_at.begin(), progress_->zero_at.end(),
                     [&](int64_t zero_at) { return zero_at >= step && zero_at != kUnitStays; });
}

// Multiplies what is on its way out; at zero_at it becomes zero.
void Pruner::Shrink(TrainingState& state, int64_t step, Stream& stream) {
  std::vector<float> factors;
  for (const int64_t zero_at : progress_->zero_at) {
    const bool shrinks = zero_at >= step && zero_at != kUnitStays;
    const double left = shrinks ? static_cast<double>(zero_at - step) : 0;
    factors.push_back(shrinks ? static_cast<float>(left / (left + 1)) : 1.0f);
  }
  ScaleUnits(state, *table_, factors, backend_, stream);
}

int64_t Pruner::AfterStep(TrainingState& state, int64_t step, bool skipped, Stream& stream) {
  int64_t removed = 0;
  if (!ramp_) return removed;
  if (collecting_) state.model().CollectStatistics({});
  collecting_ = false;
  if (!skipped && !progress_->done && ramp_->Gathers(InPhase(step))) GatherSaliency(state, stream);
  input_squares_.clear();
  if (skipped) chosen_.clear();  // the next event catches up
  if (!chosen_.empty() || AnyShrinks(step)) {
    state.exchange().WaitAllValues(stream);
    const int64_t parameters = LiveParameters();
    if (!chosen_.empty()) Compensate(state, stream);
    Mark(step);
    Shrink(state, step, stream);
    removed = parameters - LiveParameters();
  }
  chosen_.clear();
  blocks_.clear();
  grams_ = DeviceBuffer();
  return removed;
}

std::optional<Compaction> Pruner::DueCompaction(int64_t step) const {
  if (!ramp_) return std::nullopt;
  std::vector<bool> removed;
  bool shrinking = false;
  for (const int64_t zero_at : progress_->zero_at) {
    removed.push_back(zero_at <= step);
    shrinking |= zero_at > step && zero_at != kUnitStays;
  }
  Compaction compaction = PlanCompaction(run_.model, *table_, removed, spec());
  const int64_t stored = CountParameters(run_.model);
  const int64_t saved = stored - CountParameters(compaction.model);
  // At the end of the ramp whatever is gone goes.
  const bool last = progress_->done && !shrinking && saved > 0;
  const bool enough =
      static_cast<double>(saved) >= spec().compact_share * static_cast<double>(stored);
  if (saved > 0 && (enough || last)) return compaction;
  return std::nullopt;
}

void Pruner::Compacted(const Compaction& compaction) {
  PruningProgress kept = *progress_;
  kept.zero_at.clear();
  kept.smoothed.clear();
  for (const int64_t unit : compaction.KeptUnits(*table_)) {
    kept.zero_at.push_back(progress_->zero_at[static_cast<size_t>(unit)]);
    const auto smoothed = progress_->smoothed.begin() + unit * kSmoothed;
    kept.smoothed.insert(kept.smoothed.end(), smoothed, smoothed + kSmoothed);
  }
  progress_ = std::move(kept);
  table_.emplace(run_.model);
  CHECK_EQ(static_cast<int64_t>(progress_->zero_at.size()), table_->unit_count());
}

void Pruner::EndPhase() const {
  const int64_t stored = CountParameters(run_.model);
  if (!ramp_ || stored <= spec().target_parameters) return;
  LogWarning("phase " + run_.phases[phase_].name + " ends with " + std::to_string(stored) +
             " parameters, more than its pruning's target_parameters = " +
             std::to_string(spec().target_parameters) +
             ": its events were too few; end the ramp earlier, or raise units_per_event or lower "
             "interval");
}

}  // namespace filigree
