#include "trainer/planner.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <utility>

#include "trainer/batch_feeder.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/micro_batches.h"
#include "trainer/model/model.h"
#include "trainer/plan_course.h"
#include "trainer/plan_memory.h"
#include "trainer/plan_move.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"
#include "trainer/state_layout.h"
#include "trainer/teacher.h"
#include "trainer/topology/plan.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

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

// What an update holds beside what a step does. The old state has released its activations when the
// new one is built.
int64_t UpdateMemory(const TopologyTraffic& traffic, const PhasePlan& plan, int64_t move) {
  return std::max(traffic.selection_bytes, traffic.rebuilds ? plan.state_bytes + move : 0);
}

// What a phase that prunes leaves to the next.
int64_t PrunedStateBytes(const PhasePlan& plan) {
  return std::llround(static_cast<double>(plan.state_bytes) *
                      static_cast<double>(plan.parameters_final) /
                      static_cast<double>(plan.parameters_stored));
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

// `parameters` receives the phase's.
PhasePlan PlanPhase(const RunSpec& run, int index, int ranks, Backend& backend,
                    std::vector<Parameter>* parameters) {
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
  plan.flops = ForwardFlopsPerToken(*model, phase.batch.seq_len)
                   .Scaled(LinearFlops::kPasses * static_cast<double>(plan.tokens));
  plan.parameters_final = plan.parameters_stored;
  FollowTopology(*model, phase, fullest, &plan);
  FollowPruning(run.model, phase, &plan);
  plan.exchanged = PredictStepBytes(run, index, ranks, layout, backend.device());
  plan.pruning_bytes = PlanPruningTraffic(run, index, ranks);
  plan.bucket_bytes = BucketBytes(model->parameters(), run, ranks);
  plan.buckets = static_cast<int>(layout.buckets().size());
  plan.sparsified = PlanSparsifiedMemory(*model, run, index, ranks, backend.device());
  StepMemory memory = PlanStepMemory(*model, layout, run, index, ranks, backend.device());
  plan.memory_bytes = std::move(memory.bytes_by_kind);
  plan.state_bytes = memory.state_bytes;
  const TopologyTraffic traffic =
      PlanTopologyTraffic(run, index, ranks, model->parameters(), backend.device());
  plan.step_bytes = traffic.steps;
  plan.update_bytes = traffic.updates;
  const int64_t move =
      PlanUpdateMoveMemory(model->parameters(), run, index, ranks, backend.device());
  plan.memory_bytes["topology"] = std::max(
      UpdateMemory(traffic, plan, move), PlanRemovalMemory(model->parameters(), run, index, ranks));
  *parameters = model->parameters();
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

Status CheckPlannedSizes(const RunSpec& run) {
  ModelSpec model = run.model;
  for (const PhaseSpec& phase : run.phases) {
    const Status status = ValidateParameterisations(LinearSpecs(model), phase);
    if (!status.ok()) {
      return InvalidInput(status.message() + "\n(a phase before prunes; it is planned to leave " +
                          std::to_string(CountParameters(model)) +
                          " parameters, all sizes shrunk alike: set its alignments so that the "
                          "weights come out fitting)");
    }
    if (phase.pruning) model = PrunedInProportion(model, *phase.pruning);
  }
  return OkStatus();
}

RunPlan PlanRun(const RunSpec& run, int ranks, Backend& backend,
                const std::map<std::string, CheckpointInfo>& teachers) {
  RunPlan plan;
  RunSpec now = WithMicroBatchesOf(ranks, run);  // and the model that each phase begins with
  std::vector<Parameter> before, parameters;
  for (size_t i = 0; i < run.phases.size(); ++i) {
    const auto index = static_cast<int>(i);
    before = std::move(parameters);
    plan.phases.push_back(PlanPhase(now, index, ranks, backend, &parameters));
    const PhaseSpec& phase = now.phases[i];
    PhasePlan& planned = plan.phases.back();
    planned.pruned_before = now.model != run.model;
    int64_t previous = 0;  // what entering the phase, or compacting it, holds of another state
    if (phase.pruning) {
      previous = planned.state_bytes +
                 PlanCompactionMoveMemory(parameters, now, index, ranks, backend.device());
    }
    if (i > 0) {
      const PhasePlan& last = plan.phases[i - 1];
      const bool pruned = run.phases[i - 1].pruning.has_value();
      const int64_t move = PlanEntryMoveMemory(pruned ? parameters : before, parameters, now, index,
                                               ranks, backend.device());
      previous = std::max(previous, (pruned ? PrunedStateBytes(last) : last.state_bytes) + move);
    }
    if (phase.pruning) now.model = PrunedInProportion(now.model, *phase.pruning);
    planned.memory_bytes["transition"] =
        std::max<int64_t>(previous - planned.memory_bytes["topology"], 0);
    if (!phase.distillation.on()) continue;
    const TeacherCost teacher =
        CostOfTeacher(teachers.at(phase.distillation.teacher), phase.batch, backend);
    const auto feeder = [&](bool divergences) {
      return BatchFeeder::Bytes(phase.batch.micro_batch_sequences, phase.batch.seq_len,
                                divergences);
    };
    planned.memory_bytes["teacher"] = teacher.memory_bytes + feeder(true) - feeder(false);
    planned.flops.executed += teacher.flops_per_token * static_cast<double>(planned.tokens);
  }
  return plan;
}

}  // namespace filigree
