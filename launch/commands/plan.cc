#include <cstdio>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/plan_report.h"
#include "launch/commands/plan_target.h"
#include "launch/commands/scaling_report.h"
#include "trainer/run_inputs.h"
#include "trainer/scaling_plan.h"
#include "trainer/teacher.h"

namespace filigree {
namespace {

// The command line's links in the place of the config's.
void ApplyLink(const PlanCommand& command, LinkSpec* link) {
  link->network_gbps = command.link_gbps.value_or(link->network_gbps);
  link->network_latency_us = command.link_latency_us.value_or(link->network_latency_us);
  link->node_gbps = command.node_gbps.value_or(link->node_gbps);
  link->node_latency_us = command.node_latency_us.value_or(link->node_latency_us);
  link->gpus_per_node = command.gpus_per_node.value_or(link->gpus_per_node);
}

}  // namespace

Status PlanCommand::Run() const {
  auto loaded = LoadCheckedConfig(config, overrides);
  if (!loaded.ok()) {
    ASSIGN_OR_RETURN(const Session session, OpenSession(kNoCompute));
    return ForThisRank(loaded.status(), session);
  }
  RunSpec& run = loaded->spec;
  ApplyLink(*this, &run.link);
  ASSIGN_OR_RETURN(const PlanTarget target, OpenPlanTarget(*this, run));
  const Session& session = target.session;
  if (const Status status = CheckDevice(run, *session.device); !status.ok()) {
    return ForThisRank(status, session);
  }
  if (const Status sizes = CheckPlannedSizes(run); !sizes.ok()) {
    return ForThisRank(InvalidInput(config + ": " + sizes.message()), session);
  }
  const auto teachers = OpenTeachers(run);
  if (!teachers.ok()) return ForThisRank(teachers.status(), session);
  session.backend->set_deterministic(run.deterministic);
  RunPlan plan = PlanRun(run, ranks, *session.backend, *teachers);
  for (PhasePlan& phase : plan.phases) phase.memory_bytes["context"] = target.context_bytes;
  std::vector<ScalingPoint> scaling;
  if (step_ms > 0) {
    scaling = PlanScaling(run, ranks, step_ms / 1e3, jitter_percent / 100, *session.backend);
  }
  if (session.communicator->rank() != 0) return OkStatus();
  if (json) {
    nlohmann::json result = ToJson(plan, target);
    if (!scaling.empty()) result["scaling"] = ScalingJson(*this, run, scaling);
    std::printf("%s\n", result.dump(1).c_str());
  } else {
    Print(plan, ranks, target);
    if (!scaling.empty()) PrintScaling(*this, run, scaling);
  }
  return OkStatus();
}

}  // namespace filigree
