#include "launch/commands/scaling_report.h"

#include <cstdio>

#include "trainer/metrics/numbers.h"

namespace filigree {
namespace {

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

}  // namespace

nlohmann::json ScalingJson(const PlanCommand& command, const RunSpec& run,
                           const std::vector<ScalingPoint>& points) {
  nlohmann::json json = {{"assumptions", AssumptionsOf(command, run)}};
  for (const ScalingPoint& point : points) json["points"].push_back(ToJson(point));
  return json;
}

void PrintScaling(const PlanCommand& command, const RunSpec& run,
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
      run.phases.front().name.c_str(), command.step_ms, MicroBatchesOf(run, command.ranks),
      run.link.gpus_per_node, run.link.network_gbps, run.link.network_latency_us,
      run.link.node_gbps, run.link.node_latency_us, command.jitter_percent);
  for (const ScalingPoint& p : points) {
    std::printf("  %5d %9.2f %9.1f %% %12.2f %19.2f %7.2f %8.2f %7.2f  %d x %s\n", p.gpus,
                1e3 * p.step.seconds, 100 * p.step.efficiency, 1e3 * p.step.exchange,
                1e3 * p.step.exposed_gradients, 1e3 * p.step.exposed_values, 1e3 * p.step.scalars,
                1e3 * p.step.jitter, p.buckets,
                FormatBytes(static_cast<double>(p.bucket_bytes)).c_str());
  }
}

}  // namespace filigree
