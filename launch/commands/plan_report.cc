#include "launch/commands/plan_report.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "launch/commands/sparsified_report.h"
#include "trainer/metrics/numbers.h"

namespace filigree {
namespace {

nlohmann::json ToJson(const PhasePlan& phase) {
  nlohmann::json memory = phase.memory_bytes;
  memory["total"] = phase.memory_total();
  nlohmann::json density = nlohmann::json::array();
  for (const auto& point : phase.density) density.push_back({point.step, point.density});
  const auto points = [](const std::vector<TopologyTraffic::Point>& list) {
    nlohmann::json json = nlohmann::json::array();
    for (const auto& point : list) json.push_back({point.step, point.bytes});
    return json;
  };
  nlohmann::json json = {
      {"name", phase.name},
      {"steps", phase.steps},
      {"pruned_before", phase.pruned_before},
      {"tokens", phase.tokens},
      {"parameters_logical", phase.parameters_logical},
      {"parameters_stored", phase.parameters_stored},
      {"parameters_final", phase.parameters_final},
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
      {"exchanged_bytes_by_step", points(phase.step_bytes)},
      {"update_bytes_by_step", points(phase.update_bytes)},
      {"pruning_bytes",
       {{"first_step", phase.pruning_bytes.first_step},
        {"per_step", phase.pruning_bytes.bytes_per_step},
        {"per_event", phase.pruning_bytes.bytes_per_event}}},
      {"bucket_bytes", phase.bucket_bytes},
      {"buckets", phase.buckets},
      {"dense_control_parameters", static_cast<int64_t>(phase.average_parameters)},
      {"memory_bytes", memory},
      {"sparsified_memory_bytes", ToJson(phase.sparsified)}};
  if (phase.parameters_indexed > 0) {
    json["sltrain_bytes"] = {{"indices_64_bit", phase.SltrainBytes(8)},
                             {"indices_32_bit", phase.SltrainBytes(4)}};
  }
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
  if (phase.pruned_before) {
    std::printf("  after pruning  as if all sizes had shrunk alike; a run's scores choose\n");
  }
  if (phase.parameters_final < phase.parameters_stored) {
    std::printf(
        "  pruning      %s parameters on average, %s at the end; bytes below: at its largest\n",
        FormatCount(phase.average_parameters).c_str(), count(phase.parameters_final).c_str());
  }
  std::printf("  operations   %.3g dense-equivalent, %.3g by method, %.3g executed (FLOPs)\n",
              phase.flops.dense_equivalent, phase.flops.method, phase.flops.executed);
  std::printf("  exchange     %s a step: sparsified %s, dense %s\n",
              size(phase.exchanged.total()).c_str(),
              size(phase.exchanged.sparsified_grads + phase.exchanged.sparsified_values).c_str(),
              size(phase.exchanged.dense_grads + phase.exchanged.dense_values).c_str());
  if (!phase.update_bytes.empty()) {
    std::printf(
        "  updates      %zu of the topology, the largest exchanges %s\n", phase.update_bytes.size(),
        size(std::max_element(phase.update_bytes.begin(), phase.update_bytes.end(),
                              [](const auto& a, const auto& b) { return a.bytes < b.bytes; })
                 ->bytes)
            .c_str());
  }
  if (phase.pruning_bytes.bytes_per_step > 0) {
    std::printf("  scores       %s more a step from step %lld on, less after compactions\n",
                size(phase.pruning_bytes.bytes_per_step).c_str(),
                static_cast<long long>(phase.pruning_bytes.first_step));
  }
  std::printf("  buckets      %d of at most %s of gradients (a larger parameter has its own)\n",
              phase.buckets, size(phase.bucket_bytes).c_str());
  std::printf("  memory       %s a rank:", size(phase.memory_total()).c_str());
  for (const auto& [kind, bytes] : phase.memory_bytes) {
    if (bytes > 0) std::printf(" %s %s", kind.c_str(), size(bytes).c_str());
  }
  std::printf("\n");
  if (phase.parameters_indexed > 0) {
    std::printf(
        "  as published %.2f GB by SLTrain's count: bf16 values and two moments, 64-bit indices "
        "(%.2f GB with 32 bits)\n",
        static_cast<double>(phase.SltrainBytes(8)) / 1e9,
        static_cast<double>(phase.SltrainBytes(4)) / 1e9);
  }
  PrintSparsified(phase.sparsified);
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

nlohmann::json ToJson(const PlanTarget& target) {
  const Device& device = *target.session.device;
  nlohmann::json json = {{"name", device.name()},
                         {"values", NameOf(device.compute_dtype())},
                         {"present", target.present},
                         {"estimated_memory", target.estimates}};
  if (!target.card.empty()) {
    json["card"] = target.card;
    json["memory_bytes"] = target.memory_bytes;
  }
  return json;
}

void PrintTarget(int ranks, const PlanTarget& target) {
  const Device& device = *target.session.device;
  std::printf("%d rank%s on %s, values in %s\n", ranks, ranks == 1 ? "" : "s",
              std::string(device.name()).c_str(),
              std::string(NameOf(device.compute_dtype())).c_str());
  if (target.card.empty()) {
    if (!target.choice.empty()) std::printf("device          %s\n", target.choice.c_str());
    return;
  }
  std::printf("device          %s of %s (%s)\n", target.card.c_str(),
              FormatBytes(static_cast<double>(target.memory_bytes)).c_str(), target.choice.c_str());
}

// Whether the phase that needs most goes into the GPU's memory.
void PrintFit(const RunPlan& plan, const PlanTarget& target) {
  if (target.memory_bytes == 0) return;
  const PhasePlan& largest = plan.largest();
  const int64_t left = target.memory_bytes - largest.memory_total();
  std::printf("fit             phase %s %s %s of the GPU's %s\n", largest.name.c_str(),
              left >= 0 ? "leaves" : "does not fit: it wants more by",
              FormatBytes(static_cast<double>(std::abs(left))).c_str(),
              FormatBytes(static_cast<double>(target.memory_bytes)).c_str());
  std::printf("estimated       of scratch what cuDNN takes%s; all else is counted\n",
              target.present ? "" : ", and all of context");
}

}  // namespace

// The whole run: sums over the phases, the first phase's parameters and traffic, the largest one's
// memory.
nlohmann::json ToJson(const RunPlan& plan, const PlanTarget& target) {
  nlohmann::json json = ToJson(plan.phases.front());
  for (const char* field : {"name", "steps", "pruned_before", "pruning_bytes", "exchanged_bytes",
                            "exchanged_bytes_by_step", "update_bytes_by_step", "density_by_step",
                            "bucket_bytes", "buckets"}) {
    json.erase(field);
  }
  const LinearFlops flops = plan.flops();
  json["tokens"] = plan.tokens();
  json["parameters_final"] = plan.phases.back().parameters_final;
  json["average_density"] = plan.average_density();
  json["final_sparsity"] = plan.phases.back().final_sparsity;
  json["flops_dense_equivalent"] = flops.dense_equivalent;
  json["flops_method"] = flops.method;
  json["flops_executed"] = flops.executed;
  json["dense_control_parameters"] = static_cast<int64_t>(plan.average_parameters());
  for (const char* field : {"memory_bytes", "sparsified_memory_bytes"}) {
    json[field] = ToJson(plan.largest())[field];
  }
  json["device"] = ToJson(target);
  for (const PhasePlan& phase : plan.phases) json["phases"].push_back(ToJson(phase));
  return json;
}

void Print(const RunPlan& plan, int ranks, const PlanTarget& target) {
  PrintTarget(ranks, target);
  for (const PhasePlan& phase : plan.phases) {
    PrintPhase(phase);
    PrintDensity(phase);
  }
  std::printf("average density %.4f of the sparsifiable weights\n", plan.average_density());
  PrintFit(plan, target);
  std::printf("dense control   a dense model of %s parameters has as many on average\n",
              FormatCount(plan.average_parameters()).c_str());
}

}  // namespace filigree
