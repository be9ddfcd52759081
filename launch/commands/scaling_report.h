// The scaling model's table as `plan --step-ms` prints it, and its JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "launch/commands/commands.h"
#include "trainer/scaling_plan.h"

namespace filigree {

// With the model's inputs: what a reader must believe to believe the table.
nlohmann::json ScalingJson(const PlanCommand& command, const RunSpec& run,
                           const std::vector<ScalingPoint>& points);
void PrintScaling(const PlanCommand& command, const RunSpec& run,
                  const std::vector<ScalingPoint>& points);

}  // namespace filigree
