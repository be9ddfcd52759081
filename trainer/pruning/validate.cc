// What a configuration may not ask of pruning.
#include <sstream>

#include "trainer/linear/linear.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/model/model.h"
#include "trainer/pruning/ramp.h"

namespace filigree {
namespace {

class Validator {
 public:
  explicit Validator(const RunSpec& run) : run_(run) {}

  void CheckPhase(const PhaseSpec& phase) {
    if (initial_ > 0 && phase.rewind_step >= 0) {
      place_ = "phase " + phase.name + ": ";
      Add("rewind_step goes back to weights of before an earlier phase's pruning, which this model "
          "has no place for; leave it out");
    }
    if (!phase.pruning) return;
    place_ = "phase " + phase.name + ": pruning ";
    CheckKinds(*phase.pruning);
    CheckTarget(*phase.pruning);
    CheckTimes(phase);
    CheckParameterisations(phase);
    CheckOptimizer(phase);
    initial_ = phase.pruning->target_parameters;
  }

  Status ToStatus() const {
    const std::string text = problems_.str();
    return text.empty() ? OkStatus() : InvalidInput(text);
  }

 private:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    problems_ << (problems_.tellp() > 0 ? "\n" : "") << place_;
    (problems_ << ... << parts);
  }

  void CheckKinds(const PruningSpec& pruning) {
    bool any = false;
    const UnitTable table(run_.model);
    for (const UnitSet& set : table.sets()) {
      const PruningSpec::Kind& kind = pruning.of(set.kind);
      any |= kind.enabled;
      if (set.layer > 0 || !kind.enabled) continue;  // one layer is news enough
      if (kind.alignment > set.count) {
        Add(NameOf(set.kind), ".alignment = ", kind.alignment, " is more than the ", set.count,
            " there are; lower it or set enabled: false");
      }
    }
    if (!any) Add("has no kind of unit that it may remove; enable one");
    const bool stem = pruning.of(UnitKind::kStem).enabled;
    if (stem && TraitsOf(run_.model.family).norm == NormKind::kLayer) {
      Add("cannot remove stem channels of the GPT2 family: LayerNorm's mean is over the channels "
          "that are there; set stem { enabled: false }");
    }
  }

  void CheckTarget(const PruningSpec& pruning) {
    const int64_t parameters = initial_ > 0 ? initial_ : CountParameters(run_.model);
    const int64_t target = pruning.target_parameters, floor = FloorParameters(run_.model, pruning);
    if (target >= parameters) {
      Add("target_parameters = ", target, " is not below the ", parameters,
          " that the model has; lower it");
    } else if (target < floor) {
      Add("target_parameters = ", target,
          " is below the floors: with the minima of attention, "
          "feed_forward and stem the model keeps ",
          floor, "; raise target_parameters or lower a minimum");
    }
  }

  // The ramp must fit, also one unit of the largest kind at a time.
  void CheckTimes(const PhaseSpec& phase) {
    const PruningSpec& pruning = *phase.pruning;
    if (pruning.clock == Clock::kCompute || pruning.curve == SparsityCurve::kPoints ||
        pruning.curve == SparsityCurve::kConstant) {
      Add("runs over FRACTION, STEPS or TOKENS, and its curve is LINEAR, CUBIC or GEOMETRIC");
      return;
    }
    if (pruning.clock == Clock::kFraction && pruning.end > 1) {
      Add("ends at ", pruning.end, " of the phase; a FRACTION is at most 1");
      return;
    }
    if (pruning.end < pruning.begin) {
      Add("ends at ", pruning.end, ", before it begins at ", pruning.begin);
      return;
    }
    const int64_t parameters = initial_ > 0 ? initial_ : CountParameters(run_.model);
    const Ramp ramp(pruning, {.steps = phase.steps, .tokens_per_step = phase.batch.tokens_per_step},
                    parameters);
    // What alignment left to do, what still shrinks and the last compaction need an event after it.
    if (ramp.last_step() + ramp.interval() > phase.steps) {
      Add("ends at step ", ramp.last_step(), " and needs ", ramp.interval(),
          " more to finish, of a phase of ", phase.steps, "; shorten it or lengthen the phase");
    }
    if (pruning.units_per_event == 0) return;
    int64_t largest = 0;
    const UnitTable table(run_.model);
    for (const UnitSet& set : table.sets()) {
      if (pruning.of(set.kind).enabled) largest = std::max(largest, set.parameters);
    }
    const int64_t events = (phase.steps - ramp.first_step()) / ramp.interval() + 1;
    const int64_t most = events * pruning.units_per_event * largest;
    if (parameters - most > pruning.target_parameters) {
      Add("units_per_event = ", pruning.units_per_event, " removes at most ", most,
          " parameters in the phase's ", events, " events, and target_parameters asks for ",
          parameters - pruning.target_parameters, "; raise it, or leave it out");
    }
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
  int64_t initial_ = 0;  // what an earlier phase's ramp leaves
  std::string place_;
  std::ostringstream problems_;
};

}  // namespace

Status ValidatePruning(const RunSpec& run) {
  Validator validator(run);
  for (const PhaseSpec& phase : run.phases) validator.CheckPhase(phase);
  return validator.ToStatus();
}

}  // namespace filigree
