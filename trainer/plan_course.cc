#include "trainer/plan_course.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "trainer/pruning/ramp.h"
#include "trainer/topology/plan.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

// Sparse cells of one entry by step, as fractions of what they are at the fullest moment.
struct EntryCourse {
  double cells = 0;             // stored at the fullest moment
  std::vector<double> density;  // of the entry's weights before each step, and after the last
};

EntryCourse CourseOf(const TopologyEntry& entry, const PhaseSpec& phase) {
  EntryCourse course;
  const Timeline timeline = TimelineOf(phase);
  for (const LinearSpec& linear : entry.linears) {
    course.cells += static_cast<double>(linear.out * linear.in);
  }
  for (int64_t step = 0; step <= phase.steps; ++step) {
    course.density.push_back(1 - entry.rule->sparsity(entry.spec, timeline, step));
  }
  return course;
}

double Mean(const std::vector<double>& density) {
  // What follows the last step trains nothing.
  if (density.size() == 1) return density.front();
  return std::accumulate(density.begin(), density.end() - 1, 0.0) /
         static_cast<double>(density.size() - 1);
}

}  // namespace

PhaseSpec FullestMoment(PhaseSpec phase) {
  for (SparsitySpec& spec : phase.sparsity) {
    const TopologyRule* rule = FindTopologyRule(spec.rule);
    double fullest = rule->entry == PhaseEntry::kDraw ? spec.sparsity : spec.initial_sparsity;
    for (int64_t step = 0; step <= phase.steps; step += std::max<int64_t>(phase.steps, 1)) {
      fullest = std::min(fullest, rule->sparsity(spec, TimelineOf(phase), step));
    }
    spec.initial_sparsity = fullest;
  }
  return phase;
}

void FollowTopology(const Model& model, const PhaseSpec& phase, const PhaseSpec& fullest,
                    PhasePlan* plan) {
  const std::vector<LinearSpec> linears = LinearSpecs(model.spec());
  const auto total = static_cast<double>(CountSparsity(model.parameters()).logical);
  const double static_density = 1 - plan->sparsity;
  std::vector<double> density(static_cast<size_t>(phase.steps) + 1, static_density);
  const std::vector<TopologyEntry> now = EntriesOf(linears, phase);
  const std::vector<TopologyEntry> full = EntriesOf(linears, fullest);
  for (size_t e = 0; e < now.size(); ++e) {
    if (now[e].rule->action(now[e].spec, TimelineOf(phase), 0) == std::nullopt &&
        now[e].rule->sparsity(now[e].spec, TimelineOf(phase), 0) ==
            now[e].rule->sparsity(now[e].spec, TimelineOf(phase), phase.steps)) {
      continue;  // constant: the layouts say it to the cell
    }
    const EntryCourse course = CourseOf(now[e], phase);
    const double peak = 1 - full[e].spec.initial_sparsity;
    for (size_t step = 0; step < density.size(); ++step) {
      density[step] += (course.density[step] - peak) * course.cells / total;
    }
    const double fewer = (Mean(course.density) - peak) * course.cells;  // cells, on average
    plan->average_parameters += fewer;
    plan->parameters_final += std::llround((course.density.back() - peak) * course.cells);
    const double flops = 2.0 * LinearFlops::kPasses * fewer * static_cast<double>(plan->tokens);
    plan->flops.method += flops;
    if (FindParameterisation(now[e].spec.parameterisation)->computes_stored) {
      plan->flops.executed += flops;
    }
  }
  plan->average_density = Mean(density);
  plan->sparsity = 1 - density.front();
  plan->final_sparsity = 1 - density.back();
  for (size_t step = 0; step < density.size(); ++step) {
    if (step > 0 && density[step] == density[step - 1]) continue;
    plan->density.push_back({phase.first_step + static_cast<int64_t>(step), density[step]});
  }
}

void FollowPruning(const ModelSpec& model, const PhaseSpec& phase, PhasePlan* plan) {
  if (!phase.pruning) return;
  const int64_t all = CountParameters(model);
  const Ramp ramp(*phase.pruning, TimelineOf(phase), all);
  double sum = 0;
  for (int64_t step = 0; step < phase.steps; ++step) {
    sum += static_cast<double>(step < ramp.first_step() ? all : ramp.AllowedAt(step));
  }
  const double average = sum / static_cast<double>(std::max<int64_t>(phase.steps, 1));
  const double last = static_cast<double>(phase.pruning->target_parameters);
  const auto share_of = [&](double parameters) { return parameters / static_cast<double>(all); };
  plan->average_parameters *= share_of(average);
  plan->parameters_final =
      std::llround(static_cast<double>(plan->parameters_final) * share_of(last));
  const double flops = 2.0 * LinearFlops::kPasses * (static_cast<double>(all) - average) *
                       static_cast<double>(plan->tokens);
  plan->flops = plan->flops.Scaled(1 - flops / plan->flops.dense_equivalent);
}

}  // namespace filigree
