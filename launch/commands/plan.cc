#include <cstdio>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "trainer/metrics/numbers.h"
#include "trainer/planner.h"

namespace filigree {
namespace {

nlohmann::json ToJson(const PhasePlan& phase) {
  nlohmann::json memory = phase.memory_bytes;
  memory["total"] = phase.memory_total();
  nlohmann::json density = nlohmann::json::array();
  for (const auto& point : phase.density) density.push_back({point.step, point.density});
  return {{"name", phase.name},
          {"steps", phase.steps},
          {"tokens", phase.tokens},
          {"parameters_logical", phase.parameters_logical},
          {"parameters_stored", phase.parameters_stored},
          {"average_density", phase.average_density},
          {"final_sparsity", phase.final_sparsity},
          {"density_by_step", density},
          {"flops_dense_equivalent", phase.flops.dense_equivalent},
          {"flops_method", phase.flops.method},
          {"flops_executed", phase.flops.executed},
          {"exchanged_bytes_per_step", phase.exchanged.total()},
          {"exchanged_bytes",
           {{"sparsified_grads", phase.exchanged.sparsified_grads},
            {"dense_grads", phase.exchanged.dense_grads},
            {"sparsified_values", phase.exchanged.sparsified_values},
            {"dense_values", phase.exchanged.dense_values},
            {"control", phase.exchanged.control}}},
          {"dense_control_parameters", static_cast<int64_t>(phase.average_parameters)},
          {"memory_bytes", memory}};
}

// The whole run: sums over the phases, the first phase's parameters and traffic, the largest one's
// memory.
nlohmann::json ToJson(const RunPlan& plan) {
  nlohmann::json json = ToJson(plan.phases.front());
  for (const char* field : {"name", "steps", "exchanged_bytes", "density_by_step"})
    json.erase(field);
  const LinearFlops flops = plan.flops();
  json["tokens"] = plan.tokens();
  json["average_density"] = plan.average_density();
  json["final_sparsity"] = plan.phases.back().final_sparsity;
  json["flops_dense_equivalent"] = flops.dense_equivalent;
  json["flops_method"] = flops.method;
  json["flops_executed"] = flops.executed;
  json["dense_control_parameters"] = static_cast<int64_t>(plan.average_parameters());
  json["memory_bytes"] = ToJson(plan.largest())["memory_bytes"];
  for (const PhasePlan& phase : plan.phases) json["phases"].push_back(ToJson(phase));
  return json;
}

void PrintPhase(const PhasePlan& phase) {
  const auto count = [](int64_t value) { return FormatCount(static_cast<double>(value)); };
  const auto size = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  std::printf("phase %s: %s steps, %s tokens\n", phase.name.c_str(), count(phase.steps).c_str(),
              count(phase.tokens).c_str());
  std::printf("  parameters   %s logical, %s stored; sparsifiable weights %.2f %% zeros\n",
              count(phase.parameters_logical).c_str(), count(phase.parameters_stored).c_str(),
              100 * phase.sparsity);
  std::printf("  operations   %s dense-equivalent, %s by method, %s executed (FLOPs)\n",
              FormatCount(phase.flops.dense_equivalent).c_str(),
              FormatCount(phase.flops.method).c_str(), FormatCount(phase.flops.executed).c_str());
  std::printf("  exchange     %s a step: sparsified %s, dense %s\n",
              size(phase.exchanged.total()).c_str(),
              size(phase.exchanged.sparsified_grads + phase.exchanged.sparsified_values).c_str(),
              size(phase.exchanged.dense_grads + phase.exchanged.dense_values).c_str());
  std::printf("  memory       %s a rank:", size(phase.memory_total()).c_str());
  for (const auto& [kind, bytes] : phase.memory_bytes) {
    if (bytes > 0) std::printf(" %s %s", kind.c_str(), size(bytes).c_str());
  }
  std::printf("\n");
}

// At most a dozen moments of a moving topology.
void PrintDensity(const PhasePlan& phase) {
  if (phase.density.size() < 2) return;
  constexpr size_t kShown = 12;
  const size_t stride = (phase.density.size() + kShown - 1) / kShown;
  std::printf("  density      average %.4f, by step:", phase.average_density);
  for (size_t i = 0; i < phase.density.size(); i += stride) {
    std::printf(" %lld: %.4f", static_cast<long long>(phase.density[i].step),
                phase.density[i].density);
  }
  if ((phase.density.size() - 1) % stride != 0) {
    const auto& last = phase.density.back();
    std::printf(" %lld: %.4f", static_cast<long long>(last.step), last.density);
  }
  std::printf("\n");
}

void Print(const RunPlan& plan, int ranks) {
  std::printf("%d rank%s\n", ranks, ranks == 1 ? "" : "s");
  for (const PhasePlan& phase : plan.phases) {
    PrintPhase(phase);
    PrintDensity(phase);
  }
  std::printf("average density %.4f of the sparsifiable weights\n", plan.average_density());
  std::printf("dense control   a dense model of %s parameters has as many on average\n",
              FormatCount(plan.average_parameters()).c_str());
}

}  // namespace

Status PlanCommand::Run() const {
  auto loaded = LoadCheckedConfig(config, overrides);
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(loaded.ok() ? SessionOptionsOf(loaded->spec) : kNoCompute));
  if (!loaded.ok()) return ForThisRank(loaded.status(), session);
  const RunPlan plan = PlanRun(loaded->spec, ranks, *session.backend);
  if (session.communicator->rank() != 0) return OkStatus();
  if (json) {
    std::printf("%s\n", ToJson(plan).dump(1).c_str());
  } else {
    Print(plan, ranks);
  }
  return OkStatus();
}

}  // namespace filigree
