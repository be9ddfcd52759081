// A plan as `plan` prints it and as JSON (the fields of the contract, and more).
#pragma once

#include <nlohmann/json.hpp>

#include "launch/commands/plan_target.h"
#include "trainer/planner.h"

namespace filigree {

nlohmann::json ToJson(const RunPlan& plan, const PlanTarget& target);
void Print(const RunPlan& plan, int ranks, const PlanTarget& target);

}  // namespace filigree
