// What a configuration may not ask of pruning.
#include <sstream>

#include "kernels/base/math.h"
#include "trainer/linear/linear.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/model/model.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"

namespace filigree {
namespace {

class Validator {
 public:
  explicit Validator(const RunSpec& run) : run_(run), model_(run.model) {}

  void CheckPhase(const PhaseSpec& phase) {
    if (pruned_ && phase.rewind_step >= 0) {
      place_ = "phase " + phase.name + ": ";
      Add("rewind_step goes back to weights of before an earlier phase's pruning, which this model "
          "has no place for; leave it out");
    }
    if (!phase.pruning) return;
    place_ = "phase " + phase.name + ": pruning ";
    CheckParameterisations(phase);
    CheckOptimizer(phase);
    if (before_) model_ = PrunedInProportion(model_, *before_);
    before_ = nullptr;
    if (CheckKinds(*phase.pruning) && CheckTarget(*phase.pruning)) {
      before_ = &*phase.pruning;
      CheckTimes(phase);
    }
    pruned_ = true;
  }

  Status ToStatus() const { return problems_ == 0 ? OkStatus() : InvalidInput(text_.str()); }

 private:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    text_ << (problems_++ > 0 ? "\n" : "") << place_;
    (text_ << ... << parts);
  }

  // Whether the kinds are such that a ramp can be looked at.
  bool CheckKinds(const PruningSpec& pruning) {
    const size_t before = problems_;
    bool any = false;
    const UnitTable table(run_.model);
    for (const UnitSet& set : table.sets()) {
      const PruningSpec::Kind& kind = pruning.of(set.kind);
      any |= kind.enabled;
      if (set.layer > 0 || !kind.enabled) continue;  // one layer is news enough
      const int64_t floor = AlignUp(kind.minimum, kind.alignment);
      if (kind.alignment > set.count) {
        Add(NameOf(set.kind), ".alignment = ", kind.alignment, " is more than the ", set.count,
            " there are; lower it or set enabled: false");
      } else if (kind.minimum > set.count) {
        Add(NameOf(set.kind), ".minimum = ", kind.minimum, " is more than the ", set.count,
            " there are; lower it or set enabled: false");
      } else if (floor > set.count) {
        Add(NameOf(set.kind), ".minimum = ", kind.minimum, " is ", floor, " when rounded up to ",
            "alignment = ", kind.alignment, ", more than the ", set.count,
            " there are; lower either or set enabled: false");
      }
    }
    if (!any) Add("has no kind of unit that it may remove; enable one");
    const bool stem = pruning.of(UnitKind::kStem).enabled;
    if (stem && TraitsOf(run_.model.family).norm == NormKind::kLayer) {
      Add("cannot remove stem channels of the GPT2 family: LayerNorm's mean is over the channels "
          "that are there; set stem { enabled: false }");
    }
    return problems_ == before;
  }

  // Whether there is a way to the target.
  bool CheckTarget(const PruningSpec& pruning) {
    const int64_t parameters = CountParameters(model_);
    const int64_t target = pruning.target_parameters, floor = FloorParameters(model_, pruning);
    if (target >= parameters) {
      Add("target_parameters = ", target, " is not below the ", parameters,
          pruned_ ? " that the phases before leave; lower it" : " that the model has; lower it");
    } else if (target < floor) {
      Add("target_parameters = ", target,
          " is below the floors: with the minima of attention, "
          "feed_forward and stem the model keeps ",
          floor, "; raise target_parameters or lower a minimum");
    }
    return floor <= target && target < parameters;
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
    const Ramp ramp(pruning, timeline, CountParameters(model_));
    // What alignment left to do, what still shrinks and the last compaction need an event after it.
    const int64_t last = ramp.EventFrom(ramp.last_step());
    if (last + ramp.interval() > phase.steps) {
      Add("ends at step ", last, " and needs ", ramp.interval(), " more to finish, of a phase of ",
          phase.steps, "; shorten it or lengthen the phase");
      return;
    }
    if (pruning.units_per_event == 0) return;
    const RampReach reach = ReachOf(model_, pruning, timeline, UnitOrder::kInProportion);
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
  ModelSpec model_;  // what earlier phases' ramps leave, but for
  const PruningSpec* before_ = nullptr;
  bool pruned_ = false;  // some phase before
  std::string place_;
  std::ostringstream text_;
  size_t problems_ = 0;  // in it
};

}  // namespace

Status ValidatePruning(const RunSpec& run) {
  Validator validator(run);
  for (const PhaseSpec& phase : run.phases) validator.CheckPhase(phase);
  return validator.ToStatus();
}

}  // namespace filigree
