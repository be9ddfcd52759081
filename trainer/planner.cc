#include "trainer/planner.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "trainer/checkpoint/merged_weight.h"
#include "trainer/model/model.h"
#include "trainer/pruning/ramp.h"
#include "trainer/sample_tree.h"
#include "trainer/teacher.h"
#include "trainer/topology/plan.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr double kForwardAndBackward = 3.0;  // forward, input gradient, weight gradient

LinearFlops Scale(LinearFlops flops, double factor) {
  return {flops.dense_equivalent * factor, flops.method * factor, flops.executed * factor};
}

std::map<std::string, int64_t> MemoryOf(const Model& model, const FlatLayout& layout,
                                        const RunSpec& run, int index, int ranks, Device& device) {
  const DType dtype = device.compute_dtype();
  const PhaseSpec& phase = run.phases[index];
  const StateBytes state = PredictStateBytes(layout, dtype, run.grad_dtype, phase.optimizer.state,
                                             SlotsOf(run, index, ranks), TracksAges(run, index));
  std::map<std::string, int64_t> bytes;
  bytes["values"] = state.values;
  bytes["grads"] = state.grads;
  if (ranks > 1 && run.wire_dtype != run.grad_dtype) {
    bytes["grads"] += layout.total_count() * static_cast<int64_t>(SizeOf(run.wire_dtype));
  }
  // Ranks of one host may copy each other's memory.
  if (device.name() == "cuda" && HostsOf(run.link, ranks) == 1) {
    bytes["grads"] += LandingBytes(layout, run.wire_dtype);
  }
  bytes["master"] = state.master;
  bytes["moments"] = state.moments;
  const LinearMemory linears = model.linear_memory();
  bytes["layouts"] = linears.layout_bytes;
  bytes["compute_copies"] = linears.compute_copy_bytes;
  bytes["scratch"] = linears.scratch_bytes;
  bytes["activations"] = static_cast<int64_t>(
      model.ActivationBytes(phase.batch.micro_batch_sequences, phase.batch.seq_len,
                            /*training=*/true));
  return bytes;
}

// One layout for all weights of a shape and count. Where blocks reach over an edge, the cells
// inside depend on the draw, and each weight has its own.
std::map<std::string, SparseLayout> SharedLayouts(const std::vector<LinearSpec>& linears,
                                                  const std::vector<SparsitySpec>& sparsity,
                                                  uint64_t seed) {
  struct Drawn {
    int64_t out, in;
    SparsitySpec spec;
    SparseLayout layout;
  };
  std::vector<Drawn> drawn;
  std::map<std::string, SparseLayout> layouts;
  for (const LinearSpec& linear : linears) {
    const std::string weight = linear.name + ".weight";
    SparsitySpec spec = MatchSparsity(weight, sparsity);
    if (RowOf(spec).dense) continue;
    const bool divides = linear.out % spec.block_out == 0 && linear.in % spec.block_in == 0;
    if (StoresBlocks(spec) && !divides) continue;
    spec.include = spec.exclude = {};  // entries that differ in these alone draw alike
    auto found = std::find_if(drawn.begin(), drawn.end(), [&](const Drawn& d) {
      return d.out == linear.out && d.in == linear.in && d.spec == spec;
    });
    if (found == drawn.end()) {
      const Parameterisation& row = *FindParameterisation(spec.parameterisation);
      drawn.push_back({linear.out, linear.in, spec, row.draw_layout(linear, spec, seed)});
      found = std::prev(drawn.end());
    }
    layouts.emplace(weight, found->layout);
  }
  return layouts;
}

// The sparsity as the phase has it at its fullest moment: where memory and traffic peak.
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

// Replaces the counts of the phase's fullest moment by their course over its steps.
void FollowTopology(const Model& model, const std::vector<LinearSpec>& linears,
                    const PhaseSpec& phase, const PhaseSpec& fullest, PhasePlan* plan) {
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
    const double flops = 2.0 * kForwardAndBackward * fewer * static_cast<double>(plan->tokens);
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

// What an update holds beside what a step does. The old state has released its activations when the
// new one is built.
int64_t UpdateMemory(const TopologyTraffic& traffic, const PhasePlan& plan) {
  const int64_t state = plan.memory_total() - plan.memory_bytes.at("activations");
  return std::max(traffic.selection_bytes, traffic.rebuilds ? state : 0);
}

// Parameters that live on average over a phase, and at its end: those of the ramp, if there is one,
// from what an earlier phase's left.
struct PruningCourse {
  double average = 0;
  int64_t last = 0;
};
PruningCourse FollowRamps(const RunSpec& run, int index) {
  PruningCourse course = {.average = 0, .last = CountParameters(run.model)};
  for (int i = 0; i <= index; ++i) {
    const PhaseSpec& phase = run.phases[i];
    course.average = static_cast<double>(course.last);
    if (!phase.pruning) continue;
    const Ramp ramp(*phase.pruning, TimelineOf(phase), course.last);
    double sum = 0;
    for (int64_t step = 0; step < phase.steps; ++step) {
      sum += static_cast<double>(step < ramp.first_step() ? course.last : ramp.AllowedAt(step));
    }
    course.average = sum / static_cast<double>(std::max<int64_t>(phase.steps, 1));
    course.last = phase.pruning->target_parameters;
  }
  return course;
}

// What is pruned costs nothing from then on; a parameter is taken to cost 2 operations a token and
// pass, as those of linears do, and of a sparse phase as many of the rest as its density says.
// Compaction follows in jumps of `compact_share`, which is not counted.
void FollowPruning(const RunSpec& run, int index, PhasePlan* plan) {
  const PruningCourse course = FollowRamps(run, index);
  const auto all = static_cast<double>(CountParameters(run.model));
  const double fewer = all - course.average;
  if (fewer <= 0) return;
  plan->average_parameters *= course.average / all;
  plan->parameters_final = std::llround(static_cast<double>(plan->parameters_final) *
                                        (static_cast<double>(course.last) / all));
  const double flops = 2.0 * kForwardAndBackward * fewer * static_cast<double>(plan->tokens);
  plan->flops = Scale(plan->flops, 1 - flops / plan->flops.dense_equivalent);
}

int64_t SingleWeightsBesideFactors(const std::vector<Parameter>& parameters,
                                   const std::vector<LinearSpec>& linears) {
  int64_t count = 0;
  for (const LinearSpec& linear : linears) {
    const WeightParts parts = FindWeightParts(parameters, linear.name + ".weight");
    if (!parts.has_factors() || parts.weight < 0) continue;
    const SparseLayout& weight = parameters[parts.weight].layout;
    if (weight.kind() == LayoutKind::kUnstructured) count += weight.nonzero_count();
  }
  return count;
}

PhasePlan PlanPhase(const RunSpec& run, int index, int ranks, Backend& backend) {
  const PhaseSpec& phase = run.phases[index];
  const std::vector<LinearSpec> linears = LinearSpecs(run.model);
  const PhaseSpec fullest = FullestMoment(phase);
  const std::vector<SparsitySpec> sparsity = InitialSparsity(linears, fullest);
  const auto model = Model::Create(run.model, sparsity, run.seed,
                                   SharedLayouts(linears, sparsity, run.seed), backend);
  const FlatLayout layout = LayOutParameters(model->parameters(), run, ranks);
  PhasePlan plan;
  plan.name = phase.name;
  plan.steps = phase.steps;
  plan.tokens = phase.steps * phase.batch.tokens_per_step;
  const auto dense = Model::Create(run.model, {}, run.seed, {}, backend);
  for (const Parameter& parameter : dense->parameters()) {
    plan.parameters_logical += parameter.logical_count();
  }
  for (const Parameter& parameter : model->parameters()) {
    plan.parameters_stored += parameter.layout.nonzero_count();
  }
  plan.parameters_indexed = SingleWeightsBesideFactors(model->parameters(), linears);
  plan.sparsity = CountSparsity(model->parameters()).sparsity();
  plan.average_parameters = static_cast<double>(plan.parameters_stored);
  plan.flops = Scale(ForwardFlopsPerToken(*model, phase.batch.seq_len),
                     kForwardAndBackward * static_cast<double>(plan.tokens));
  plan.parameters_final = plan.parameters_stored;
  FollowTopology(*model, linears, phase, fullest, &plan);
  FollowPruning(run, index, &plan);
  plan.exchanged = PredictStepBytes(run, index, ranks, layout, backend.device());
  plan.bucket_bytes = BucketBytes(model->parameters(), run, ranks);
  plan.buckets = static_cast<int>(layout.buckets().size());
  plan.sparsified = PlanSparsifiedMemory(*model, run, index, ranks, backend.device());
  plan.memory_bytes = MemoryOf(*model, layout, run, index, ranks, backend.device());
  plan.state_bytes = plan.memory_total() - plan.memory_bytes["activations"];
  if (SumsInTree(run, backend.device())) {
    plan.memory_bytes["scratch"] +=
        SampleTree::NodesHeld(phase.batch.sequences_per_step()) * plan.memory_bytes["grads"];
  }
  const TopologyTraffic traffic =
      PlanTopologyTraffic(run, index, ranks, model->parameters(), backend.device());
  plan.step_bytes = traffic.steps;
  plan.update_bytes = traffic.updates;
  plan.memory_bytes["topology"] = UpdateMemory(traffic, plan);
  return plan;
}

}  // namespace

int64_t PhasePlan::memory_total() const {
  int64_t total = 0;
  for (const auto& [kind, bytes] : memory_bytes) total += bytes;
  return total;
}

int64_t RunPlan::tokens() const {
  int64_t tokens = 0;
  for (const PhasePlan& phase : phases) tokens += phase.tokens;
  return tokens;
}

LinearFlops RunPlan::flops() const {
  LinearFlops sum;
  for (const PhasePlan& phase : phases) {
    sum.dense_equivalent += phase.flops.dense_equivalent;
    sum.method += phase.flops.method;
    sum.executed += phase.flops.executed;
  }
  return sum;
}

double RunPlan::average_parameters() const {
  double weighted = 0;
  for (const PhasePlan& phase : phases) {
    weighted += phase.average_parameters * static_cast<double>(phase.tokens);
  }
  return weighted / static_cast<double>(tokens());
}

double RunPlan::average_density() const {
  double weighted = 0;
  for (const PhasePlan& phase : phases) {
    weighted += phase.average_density * static_cast<double>(phase.tokens);
  }
  return weighted / static_cast<double>(tokens());
}

const PhasePlan& RunPlan::largest() const {
  return *std::max_element(
      phases.begin(), phases.end(),
      [](const PhasePlan& a, const PhasePlan& b) { return a.memory_total() < b.memory_total(); });
}

RunPlan PlanRun(const RunSpec& run, int ranks, Backend& backend,
                const std::map<std::string, CheckpointInfo>& teachers) {
  RunPlan plan;
  for (size_t i = 0; i < run.phases.size(); ++i) {
    plan.phases.push_back(PlanPhase(run, static_cast<int>(i), ranks, backend));
    const PhaseSpec& phase = run.phases[i];
    PhasePlan& planned = plan.phases.back();
    int64_t previous = phase.pruning ? planned.state_bytes : 0;
    if (i > 0) previous = std::max(previous, plan.phases[i - 1].state_bytes);
    planned.memory_bytes["transition"] =
        std::max<int64_t>(previous - planned.memory_bytes["topology"], 0);
    if (!phase.distillation.on()) continue;
    const TeacherCost teacher =
        CostOfTeacher(teachers.at(phase.distillation.teacher), phase.batch, backend);
    planned.memory_bytes["teacher"] = teacher.memory_bytes;
    planned.flops.executed += teacher.flops_per_token * static_cast<double>(planned.tokens);
  }
  return plan;
}

}  // namespace filigree
