#include "trainer/planner.h"

#include <algorithm>
#include <memory>

#include "trainer/model/model.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr double kForwardAndBackward = 3.0;  // forward, input gradient, weight gradient

LinearFlops Scale(LinearFlops flops, double factor) {
  return {flops.dense_equivalent * factor, flops.method * factor, flops.executed * factor};
}

std::map<std::string, int64_t> MemoryOf(const Model& model, const FlatLayout& layout,
                                        const BatchSpec& batch, Device& device) {
  const DType dtype = device.compute_dtype();
  const auto value_bytes = static_cast<int64_t>(SizeOf(dtype));
  const auto state_bytes = static_cast<int64_t>(SizeOf(DType::kF32));
  std::map<std::string, int64_t> bytes;
  bytes["values"] = layout.total_count() * value_bytes;
  bytes["grads"] = layout.total_count() * state_bytes;
  // Values in the master's dtype are the master (flat_buffer.h).
  bytes["master"] = dtype == DType::kF32 ? 0 : layout.shard_count() * state_bytes;
  bytes["moments"] = 2 * layout.shard_count() * state_bytes;
  for (const char* kind : {"layouts", "compute_copies", "scratch"}) bytes[kind] = 0;
  for (const Linear* linear : model.linears()) {
    const LinearMemory memory = linear->memory(dtype);
    bytes["layouts"] += memory.layout_bytes;
    bytes["compute_copies"] += memory.compute_copy_bytes;
    bytes["scratch"] = std::max(bytes["scratch"], memory.scratch_bytes);
  }
  bytes["activations"] = static_cast<int64_t>(
      model.ActivationBytes(batch.micro_batch_sequences, batch.seq_len, /*training=*/true));
  return bytes;
}

PhasePlan PlanPhase(const RunSpec& run, const PhaseSpec& phase, int ranks, Backend& backend) {
  const auto model = Model::Create(run.model, phase.sparsity, run.seed, {}, backend);
  const FlatLayout layout = LayOutParameters(model->parameters(), run, ranks, DType::kF32);
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
  plan.sparsity = CountSparsity(model->parameters()).sparsity();
  plan.flops = Scale(ForwardFlopsPerToken(*model, phase.batch.seq_len),
                     kForwardAndBackward * static_cast<double>(plan.tokens));
  plan.exchanged =
      PredictExchangedBytes(layout, ranks, backend.device().compute_dtype(), DType::kF32);
  plan.exchanged.control = ControlBytesPerStep(run, ranks);
  plan.memory_bytes = MemoryOf(*model, layout, phase.batch, backend.device());
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
    weighted += static_cast<double>(phase.parameters_stored) * static_cast<double>(phase.tokens);
  }
  return weighted / static_cast<double>(tokens());
}

double RunPlan::average_density() const {
  double weighted = 0;
  for (const PhasePlan& phase : phases) {
    weighted += (1.0 - phase.sparsity) * static_cast<double>(phase.tokens);
  }
  return weighted / static_cast<double>(tokens());
}

const PhasePlan& RunPlan::largest() const {
  return *std::max_element(
      phases.begin(), phases.end(),
      [](const PhasePlan& a, const PhasePlan& b) { return a.memory_total() < b.memory_total(); });
}

int64_t ControlBytesPerStep(const RunSpec& run, int ranks) {
  if (ranks == 1) return 0;
  const int64_t scalars = run.zero_stage == 1 ? 4 : 3;
  return scalars * static_cast<int64_t>(sizeof(double));
}

RunPlan PlanRun(const RunSpec& run, int ranks, Backend& backend) {
  RunPlan plan;
  for (const PhaseSpec& phase : run.phases) {
    plan.phases.push_back(PlanPhase(run, phase, ranks, backend));
  }
  return plan;
}

}  // namespace filigree
