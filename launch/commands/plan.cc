#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "launch/commands/sparsified_report.h"
#include "trainer/metrics/numbers.h"
#include "trainer/planner.h"
#include "trainer/run_inputs.h"
#include "trainer/scaling_plan.h"
#include "trainer/teacher.h"

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

// The whole run: sums over the phases, the first phase's parameters and traffic, the largest one's
// memory.
nlohmann::json ToJson(const RunPlan& plan) {
  nlohmann::json json = ToJson(plan.phases.front());
  for (const char* field : {"name", "steps", "exchanged_bytes", "exchanged_bytes_by_step",
                            "update_bytes_by_step", "density_by_step", "bucket_bytes", "buckets"}) {
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

// The model's inputs: what a reader must believe to believe the table.
nlohmann::json AssumptionsOf(const PlanCommand& command, const RunSpec& run) {
  return {{"step_ms", command.step_ms},
          {"micro_batches", MicroBatchesOf(run, command.ranks)},
          {"jitter_percent", command.jitter_percent},
          {"network_gbps", run.link.network_gbps},
          {"network_latency_us", run.link.network_latency_us},
          {"node_gbps", run.link.node_gbps},
          {"node_latency_us", run.link.node_latency_us},
          {"gpus_per_node", run.link.gpus_per_node}};
}

nlohmann::json ToJson(const ScalingPoint& point) {
  constexpr double kMs = 1e3;
  return {{"gpus", point.gpus},
          {"step_ms", point.step.seconds * kMs},
          {"efficiency", point.step.efficiency},
          {"exchange_ms", point.step.exchange * kMs},
          {"exposed_gradients_ms", point.step.exposed_gradients * kMs},
          {"exposed_values_ms", point.step.exposed_values * kMs},
          {"scalars_ms", point.step.scalars * kMs},
          {"jitter_ms", point.step.jitter * kMs},
          {"exchanged_bytes", point.exchanged_bytes},
          {"bucket_bytes", point.bucket_bytes},
          {"buckets", point.buckets}};
}

nlohmann::json ScalingJson(const nlohmann::json& assumptions,
                           const std::vector<ScalingPoint>& points) {
  nlohmann::json json = {{"assumptions", assumptions}};
  for (const ScalingPoint& point : points) json["points"].push_back(ToJson(point));
  return json;
}

void PrintScaling(const RunSpec& run, const nlohmann::json& a,
                  const std::vector<ScalingPoint>& points) {
  std::printf(
      "scaling of phase %s: every GPU computes for %g ms a step (%d micro-batches of forward\n"
      "1/3, backward 2/3), so tokens a step grow with the GPUs. Hosts of %d; network %g Gbit/s a\n"
      "GPU and %g us a hop, inside a host %g Gbit/s and %g us; steps of hosts vary by %g %%. F32\n"
      "gradients leave during the last backward pass, BF16 values return during the next forward\n"
      "pass (ZeRO-1), one bucket at a time over a ring (all-reduce: ring or tree); what is not\n"
      "hidden is exposed.\n"
      "   GPUs   step ms  efficiency  exchange ms  exposed: gradients  values  scalars  jitter  "
      "buckets\n",
      run.phases.front().name.c_str(), a["step_ms"].get<double>(), a["micro_batches"].get<int>(),
      run.link.gpus_per_node, run.link.network_gbps, run.link.network_latency_us,
      run.link.node_gbps, run.link.node_latency_us, a["jitter_percent"].get<double>());
  for (const ScalingPoint& p : points) {
    std::printf("  %5d %9.2f %9.1f %% %12.2f %19.2f %7.2f %8.2f %7.2f  %d x %s\n", p.gpus,
                1e3 * p.step.seconds, 100 * p.step.efficiency, 1e3 * p.step.exchange,
                1e3 * p.step.exposed_gradients, 1e3 * p.step.exposed_values, 1e3 * p.step.scalars,
                1e3 * p.step.jitter, p.buckets,
                FormatBytes(static_cast<double>(p.bucket_bytes)).c_str());
  }
}

// The command line's links in the place of the config's.
void ApplyLink(const PlanCommand& command, LinkSpec* link) {
  link->network_gbps = command.link_gbps.value_or(link->network_gbps);
  link->network_latency_us = command.link_latency_us.value_or(link->network_latency_us);
  link->node_gbps = command.node_gbps.value_or(link->node_gbps);
  link->node_latency_us = command.node_latency_us.value_or(link->node_latency_us);
  link->gpus_per_node = command.gpus_per_node.value_or(link->gpus_per_node);
}

void Print(const RunPlan& plan, int ranks, const Device& device) {
  std::printf("%d rank%s on %s, values in %s\n", ranks, ranks == 1 ? "" : "s",
              std::string(device.name()).c_str(),
              std::string(NameOf(device.compute_dtype())).c_str());
  for (const PhasePlan& phase : plan.phases) {
    PrintPhase(phase);
    PrintDensity(phase);
  }
  std::printf("average density %.4f of the sparsifiable weights\n", plan.average_density());
  std::printf("dense control   a dense model of %s parameters has as many on average\n",
              FormatCount(plan.average_parameters()).c_str());
}

// What an empty session holds on a GPU: the backend's workspaces, and what it has no account of,
// which is the context (and other programs, where the GPU is shared).
void AddLibraries(const MemoryUsage& held, int64_t in_use, RunPlan* plan) {
  const auto workspaces = held.bytes_by_kind.find("scratch");
  for (PhasePlan& phase : plan->phases) {
    if (workspaces != held.bytes_by_kind.end()) {
      phase.memory_bytes["scratch"] += static_cast<int64_t>(workspaces->second);
    }
    phase.memory_bytes["context"] = in_use - static_cast<int64_t>(held.total_bytes);
  }
}

}  // namespace

Status PlanCommand::Run() const {
  auto loaded = LoadCheckedConfig(config, overrides);
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(loaded.ok() ? SessionOptionsOf(loaded->spec) : kNoCompute));
  if (!loaded.ok()) return ForThisRank(loaded.status(), session);
  RunSpec& run = loaded->spec;
  ApplyLink(*this, &run.link);
  if (const Status status = CheckDevice(run, *session.device); !status.ok()) {
    return ForThisRank(status, session);
  }
  const auto teachers = OpenTeachers(run);
  if (!teachers.ok()) return ForThisRank(teachers.status(), session);
  const int64_t in_use = BytesInUse(session);
  const MemoryUsage held = session.device->memory_usage();
  RunPlan plan = PlanRun(run, ranks, *session.backend, *teachers);
  AddLibraries(held, in_use, &plan);
  std::vector<ScalingPoint> scaling;
  if (step_ms > 0) {
    scaling = PlanScaling(run, ranks, step_ms / 1e3, jitter_percent / 100, *session.backend);
  }
  if (session.communicator->rank() != 0) return OkStatus();
  const nlohmann::json assumptions = AssumptionsOf(*this, run);
  if (json) {
    nlohmann::json result = ToJson(plan);
    if (!scaling.empty()) result["scaling"] = ScalingJson(assumptions, scaling);
    std::printf("%s\n", result.dump(1).c_str());
  } else {
    Print(plan, ranks, *session.device);
    if (!scaling.empty()) PrintScaling(run, assumptions, scaling);
  }
  return OkStatus();
}

}  // namespace filigree
