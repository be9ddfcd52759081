#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

#include "trainer/linear/glob.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

class Validator {
 public:
  Validator(const RunSpec& run, std::span<const LinearSpec> linears)
      : run_(run), linears_(linears) {}

  void CheckPhase(int index) {
    const PhaseSpec& phase = run_.phases[index];
    CheckRewind(index);
    CheckPatterns(phase);
    for (const TopologyEntry& entry : EntriesOf(linears_, phase)) {
      place_ = "phase " + phase.name + ", sparsity with rule " + entry.spec.rule + ": ";
      if (const Status status = entry.rule->validate(entry.spec, TimelineOf(phase)); !status.ok()) {
        Add(status.message());
        continue;
      }
      CheckEntry(index, entry);
      CheckCounts(entry);
    }
  }

  Status ToStatus() const {
    const std::string problems = problems_.str();
    return problems.empty() ? OkStatus() : InvalidInput(problems);
  }

 private:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    problems_ << (problems_.tellp() > 0 ? "\n" : "") << place_;
    (problems_ << ... << parts);
  }

  // A pattern that no weight has would leave what it was meant for dense without a word.
  void CheckPatterns(const PhaseSpec& phase) {
    place_ = "phase " + phase.name + ", sparsity: ";
    for (const SparsitySpec& spec : phase.sparsity) {
      for (const std::string& pattern : spec.include) {
        const auto matches = [&](const LinearSpec& linear) {
          return GlobMatches(pattern, linear.name + ".weight");
        };
        if (std::any_of(linears_.begin(), linears_.end(), matches)) continue;
        Add("include = \"", pattern,
            "\" matches no weight that can be sparse; those are called as ", linears_.front().name,
            ".weight");
      }
    }
  }

  // Cross-checks between the rule, its criterion and the phase.
  void CheckEntry(int index, const TopologyEntry& entry) {
    const PhaseSpec& phase = run_.phases[index];
    const SparsitySpec& spec = entry.spec;
    const Criterion& criterion = *FindCriterion(spec.criterion);
    const bool needs_grads = criterion.needs_grads() || entry.rule->growth == Growth::kGradient;
    if (needs_grads && phase.schedule.lr == 0) {
      Add("it needs gradients, and the phase is frozen (schedule.lr = 0); set a learning rate or "
          "take a rule and criterion without gradients");
    }
    if (spec.distribution != "global" && spec.min_density > 0) {
      Add("min_density = ", spec.min_density, " is a floor under one threshold over all weights, ",
          "which distribution ", spec.distribution, " has not; leave it out or take global");
    }
    const bool at_start = spec.rule == "one_shot" || spec.rule == "iterative_magnitude";
    if ((spec.criterion == "snip" || criterion.needs_hessian()) && !at_start) {
      Add("criterion = ", spec.criterion,
          " scores a network at a phase's start; take rule one_shot, ", "or criterion taylor");
    }
    const bool unmoved =
        phase.schedule.lr == 0 || (at_start && index == 0 && run_.init_from.empty());
    if (spec.criterion == "movement" && unmoved) {
      Add("criterion = movement ranks weights by how they moved, and here nothing moves before it; "
          "set a learning rate, prune later, or take magnitude");
    }
    if (spec.criterion == "movement" && entry.rule->growth != Growth::kNone) {
      Add("criterion = movement measures from initial values, which grown weights do not have; "
          "take "
          "magnitude or taylor");
    }
    if (spec.rule != "static_random" && !RowOf(spec).movable) {
      std::string movable;
      for (const Parameterisation& row : Parameterisations()) {
        if (!row.movable) continue;
        movable += (movable.empty() ? "" : " and ") + std::string(row.name);
      }
      Add("rules that choose which weights live work on ", movable, ", not on ",
          spec.parameterisation, "; take rule static_random");
    }
    if (spec.parameterisation == "n_m" && spec.distribution != "uniform") {
      Add("n_m keeps n of every m in each weight alike; take distribution uniform, not ",
          spec.distribution);
    }
    if (spec.rule == "inherit" && index == 0 && run_.init_from.empty()) {
      Add("the first phase has no phase before it to inherit from; take another rule, or start "
          "from "
          "a sparse model (init_from)");
    }
    if (spec.rule == "iterative_magnitude" && phase.rewind_step < 0) {
      Add("it goes with rewind_step of the phase (0: initial values); set it, or take one_shot");
    }
    if (spec.rule == "static_random" && index > 0 && MovesTopology(run_.phases[index - 1])) {
      Add("the phase before chose which weights live, and a random draw would undo that; take rule "
          "inherit to keep them, or no sparsity for a dense phase");
    }
  }

  // A weight must keep a unit wherever the curve goes.
  void CheckCounts(const TopologyEntry& entry) {
    std::vector<WeightShape> shapes;
    for (const LinearSpec& linear : entry.linears) shapes.push_back(ShapeOf(linear, entry.spec));
    int64_t total = 0, floors = 0;
    for (const int64_t floor : GlobalFloors(shapes, entry.spec)) floors += floor;
    for (const WeightShape& shape : shapes) total += shape.units;
    if (entry.spec.distribution == "global") {
      const double target = (1 - entry.spec.sparsity) * static_cast<double>(total);
      if (std::llround(target) < floors) {
        Add("sparsity = ", entry.spec.sparsity, " leaves ", std::llround(target), " of ", total,
            " units, fewer than the floors of its ", shapes.size(), " weights together (", floors,
            "); lower sparsity, min_density or min_share");
      }
      return;
    }
    // Where all weights are drawn at this sparsity their parameterisation looks at each of them.
    if (SharesAlike(entry.spec) && DrawnSparsity(entry) == entry.spec.sparsity) return;
    const std::vector<int64_t> counts = DrawnCounts(shapes, entry.spec, entry.spec.sparsity);
    const auto emptied = std::ranges::find(counts, 0);
    if (emptied == counts.end()) return;
    const auto more = std::ranges::count(counts, 0) - 1;
    Add("sparsity = ", entry.spec.sparsity, " leaves nothing of ",
        entry.linears[static_cast<size_t>(emptied - counts.begin())].name, ".weight",
        more > 0 ? " and " + std::to_string(more) + " more weights" : "", "; lower it",
        StoresBlocks(entry.spec) ? " or choose smaller blocks" : " or exclude them");
  }

  void CheckRewind(int index) {
    const PhaseSpec& phase = run_.phases[index];
    place_ = "phase " + phase.name + ": ";
    if (phase.rewind_step < 0) return;
    if (index == 0) {
      Add("rewind_step needs a phase before this one; leave it out");
    } else if (phase.rewind_step >= run_.phases.front().steps) {
      Add("rewind_step = ", phase.rewind_step, " is not inside the first phase of ",
          run_.phases.front().steps, " steps; lower it");
    }
    if (phase.moments == Moments::kKeep) {
      Add("rewind_step takes the moments of that step, which moments: KEEP contradicts; leave it "
          "out");
    }
  }

  const RunSpec& run_;
  std::span<const LinearSpec> linears_;
  std::string place_;
  std::ostringstream problems_;
};

}  // namespace

Status ValidateTopology(const RunSpec& run, std::span<const LinearSpec> linears) {
  Validator validator(run, linears);
  for (size_t i = 0; i < run.phases.size(); ++i) validator.CheckPhase(static_cast<int>(i));
  return validator.ToStatus();
}

}  // namespace filigree
