// What a configuration may not ask of pruning.
#include "trainer/pruning/validate.h"

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "kernels/base/math.h"
#include "trainer/linear/linear.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/model/model.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"
#include "trainer/pruning/size_bounds.h"

namespace filigree {
namespace {

class Validator {
 public:
  // `begun`: the phase whose ramp is on its way, -1: none.
  Validator(const RunSpec& run, SizeBounds sizes, bool pruned, int begun)
      : run_(run), sizes_(std::move(sizes)), estimate_(run.model), pruned_(pruned), begun_(begun) {}

  // All that a configuration says of a phase.
  void CheckPhase(int phase) {
    const PhaseSpec& spec = run_.phases[phase];
    if (pruned_ && spec.rewind_step >= 0) {
      place_ = "phase " + spec.name + ": ";
      Add("rewind_step goes back to weights of before an earlier phase's pruning, which this model "
          "has no place for; leave it out");
    }
    if (!spec.pruning) return;
    place_ = "phase " + spec.name + ": pruning ";
    CheckParameterisations(spec);
    CheckOptimizer(spec);
    if (CheckSizes(phase)) CheckTimes(spec);
    pruned_ = true;
  }

  // What it says of sizes. Returns whether there is a ramp to look at.
  bool CheckSizes(int phase) {
    const PhaseSpec& spec = run_.phases[phase];
    place_ = "phase " + spec.name + ": pruning ";
    if (before_) estimate_ = PrunedInProportion(estimate_, *before_);
    before_ = nullptr;
    if (CheckKinds(*spec.pruning) && CheckTarget(*spec.pruning, phase == begun_)) {
      before_ = &*spec.pruning;
      sizes_ = BoundsAfter(sizes_, spec);
    }
    sizes_.known = false;
    return before_ != nullptr;
  }

  Status ToStatus() const { return problems_ == 0 ? OkStatus() : InvalidInput(text_.str()); }

 private:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    text_ << (problems_++ > 0 ? "\n" : "") << place_;
    (text_ << ... << parts);
  }

  // "the 12 there are", of the kind's smallest set.
  std::string There(const UnitSet& set, int64_t most) const {
    std::string text = "the " + std::to_string(most);
    text += sizes_.known ? " there are" : " that the phases before can leave";
    const UnitTable table(sizes_.model);
    bool alike = true;
    for (size_t i = 0; i < sizes_.most.size(); ++i) {
      alike &= table.sets()[i].kind != set.kind || sizes_.most[i] == most;
    }
    return alike ? text : text + " in layer " + std::to_string(set.layer);
  }

  // Of all sets of a kind, the one that leaves the least room.
  void CheckKind(const UnitSet& set, size_t index, const PruningSpec::Kind& kind) {
    const int64_t most = sizes_.most[index], floor = AlignUp(kind.minimum, kind.alignment);
    const int64_t live = sizes_.known ? sizes_.least[index] : most;
    const char* name = NameOf(set.kind);
    if (kind.alignment > most) {
      Add(name, ".alignment = ", kind.alignment, " is more than ", There(set, most),
          "; lower it or set enabled: false");
    } else if (kind.minimum > live) {
      Add(name, ".minimum = ", kind.minimum, " is more than ", There(set, live),
          "; lower it or set enabled: false");
    } else if (floor > most) {
      Add(name, ".minimum = ", kind.minimum, " is ", floor,
          " when rounded up to alignment = ", kind.alignment, ", more than ", There(set, most),
          "; lower either or set enabled: false");
    }
  }

  // Whether the kinds are such that a ramp can be looked at.
  bool CheckKinds(const PruningSpec& pruning) {
    const size_t before = problems_;
    bool any = false;
    const UnitTable table(sizes_.model);
    std::array<int, kUnitKinds> smallest;  // sets
    smallest.fill(-1);
    for (size_t i = 0; i < table.sets().size(); ++i) {
      int& found = smallest[static_cast<size_t>(table.sets()[i].kind)];
      const auto room = [&](size_t set) { return std::pair(sizes_.most[set], sizes_.least[set]); };
      if (found < 0 || room(i) < room(static_cast<size_t>(found))) found = static_cast<int>(i);
    }
    for (const int index : smallest) {
      if (index < 0) continue;
      const UnitSet& set = table.sets()[static_cast<size_t>(index)];
      const PruningSpec::Kind& kind = pruning.of(set.kind);
      any |= kind.enabled;
      if (kind.enabled) CheckKind(set, static_cast<size_t>(index), kind);
    }
    if (!any) Add("has no kind of unit that it may remove; enable one");
    const bool stem = pruning.of(UnitKind::kStem).enabled;
    if (stem && TraitsOf(run_.model.family).norm == NormKind::kLayer) {
      Add("cannot remove stem channels of the GPT2 family: LayerNorm's mean is over the channels "
          "that are there; set stem { enabled: false }");
    }
    return problems_ == before;
  }

  // Whether there is a way to the target. A ramp that is on its way may be there.
  bool CheckTarget(const PruningSpec& pruning, bool begun) {
    const int64_t target = pruning.target_parameters, floor = FloorParameters(sizes_, pruning);
    if (target >= sizes_.parameters && !begun) {
      Add("target_parameters = ", target, " is not below the ", sizes_.parameters,
          sizes_.known ? " that the model has" : " that the phases before leave at most",
          "; lower it");
      return false;
    }
    if (target < floor) {
      Add("target_parameters = ", target,
          " is below the floors: with the minima of attention, "
          "feed_forward and stem the model keeps ",
          sizes_.known ? "" : "at least ", floor, "; raise target_parameters or lower a minimum");
    }
    return floor <= target;
  }

  // The ramp must fit, also one unit of the largest kind at a time.
  void CheckTimes(const PhaseSpec& phase) {
    const PruningSpec& pruning = *phase.pruning;
    if (pruning.clock == Clock::kCompute || pruning.curve == SparsityCurve::kPoints ||
        pruning.curve == SparsityCurve::kConstant) {
      Add("runs over FRACTION, STEPS or TOKENS, and its curve is LINEAR, CUBIC or GEOMETRIC; set "
          "clock and curve so");
      return;
    }
    if (pruning.clock == Clock::kFraction && pruning.end > 1) {
      Add("ends at ", pruning.end, " of the phase; a FRACTION is at most 1");
      return;
    }
    if (pruning.end < pruning.begin) {
      Add("ends at ", pruning.end, ", before it begins at ", pruning.begin,
          "; raise end or lower begin");
      return;
    }
    const Timeline timeline = {.steps = phase.steps,
                               .tokens_per_step = phase.batch.tokens_per_step};
    const Ramp ramp(pruning, timeline, CountParameters(estimate_));
    // What alignment left to do, what still shrinks and the last compaction need an event after it.
    const int64_t last = ramp.EventFrom(ramp.last_step());
    if (last + ramp.interval() > phase.steps) {
      Add("ends at step ", last, " and needs ", ramp.interval(), " more to finish, of a phase of ",
          phase.steps, "; shorten it or lengthen the phase");
      return;
    }
    if (pruning.units_per_event == 0) return;
    const RampReach reach = ReachOf(estimate_, pruning, timeline, UnitOrder::kInProportion);
    if (reach.reached()) return;
    Add("units_per_event = ", pruning.units_per_event, " removes ", reach.removed,
        " units in the phase's ", reach.events, " events, which leaves ", reach.parameters,
        " parameters where all kinds shrink alike; target_parameters = ", pruning.target_parameters,
        " takes ", reach.units, ": raise units_per_event to ", reach.units_per_event,
        " or leave it out, lower interval, or lengthen the phase");
  }

  void CheckOptimizer(const PhaseSpec& phase) {
    const OptimizerSpec& optimizer = phase.optimizer;
    const bool whole =
        run_.grad_dtype == DType::kF32 && run_.wire_dtype == DType::kF32 && !optimizer.per_layer;
    if (whole && !optimizer.state.bf16 && !optimizer.state.eight_bit_moments) return;
    Add("scores and removes units in whole fp32 gradients and states; leave parallel.grad_dtype, "
        "parallel.wire_dtype, optimizer.state_dtype, optimizer.moments and optimizer.update at "
        "their defaults");
  }

  void CheckParameterisations(const PhaseSpec& phase) {
    for (const LinearSpec& linear : LinearSpecs(run_.model)) {
      const SparsitySpec sparsity = MatchSparsity(linear.name + ".weight", phase.sparsity);
      if (sparsity.parameterisation == "dense") continue;
      Add("removes rows and columns of dense weights, and ", linear.name, ".weight is ",
          sparsity.parameterisation,
          ": blocks would be cut through, and single weights and factors have no rows of their own "
          "to score; prune in a dense phase and make the weights sparse in a later one");
      return;
    }
  }

  const RunSpec& run_;
  SizeBounds sizes_;                     // that the phase may begin with
  ModelSpec estimate_;                   // the same if all kinds had shrunk alike, but for
  const PruningSpec* before_ = nullptr;  // the last phase that pruned
  bool pruned_;                          // some phase before
  int begun_;
  std::string place_;
  std::ostringstream text_;
  size_t problems_ = 0;  // in it
};

// What the run's progress says of its model now.
SizeBounds SizesOf(const ModelSpec& model, const std::optional<PruningProgress>& progress) {
  if (!progress) return KnownSizes(model);
  return KnownSizes(model, LiveCounts(UnitTable(model), progress->zero_at));
}

}  // namespace

Status ValidatePruning(const RunSpec& run) {
  Validator validator(run, KnownSizes(run.model), /*pruned=*/false, /*begun=*/-1);
  for (size_t phase = 0; phase < run.phases.size(); ++phase) {
    validator.CheckPhase(static_cast<int>(phase));
  }
  return validator.ToStatus();
}

Status ValidateSizesFrom(const RunSpec& run, int first,
                         const std::optional<PruningProgress>& progress) {
  const int begun = progress ? static_cast<int>(progress->phase) : -1;
  Validator validator(run, SizesOf(run.model, progress), progress.has_value(), begun);
  for (size_t phase = static_cast<size_t>(first); phase < run.phases.size(); ++phase) {
    if (run.phases[phase].pruning) validator.CheckSizes(static_cast<int>(phase));
  }
  return validator.ToStatus();
}

}  // namespace filigree
