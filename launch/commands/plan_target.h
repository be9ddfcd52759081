// The device that `plan` plans for: the one that a run of the config would take here, or a GPU of a
// named kind that need not be here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "launch/commands/commands.h"
#include "launch/commands/session.h"
#include "trainer/planner.h"

namespace filigree {

struct PlanTarget {
  Session session;                     // with that device and its backend
  std::string card;                    // the GPU's name; empty on a CPU
  int64_t memory_bytes = 0;            // the GPU's
  bool present = true;                 // else every figure is a model's, none a measurement
  std::string choice;                  // how the device came to be chosen, for a reader
  int64_t context_bytes = 0;           // in use on the device before anything of the run is
  std::vector<std::string> estimates;  // kinds of memory that are guessed, all or in part
};

// A GPU is planned for where the command (--device, --card) or else the config (parallel.device)
// asks for one; where both leave it open, if one is here. Without one here its card is --card, else
// an H100, and --memory-gb its memory. Invalid input: options that contradict each other.
StatusOr<PlanTarget> OpenPlanTarget(const PlanCommand& command, const RunSpec& run);

}  // namespace filigree
