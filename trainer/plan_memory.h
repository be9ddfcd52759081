// One rank's memory in a phase by kind, as `plan` counts it (planner.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "comm/flat_layout.h"
#include "kernels/base/device.h"
#include "trainer/model/model.h"
#include "trainer/spec.h"

namespace filigree {

struct StepMemory {
  // values, grads, master, moments, layouts, compute_copies, activations and scratch. On a GPU
  // scratch has the backend's workspaces, cuDNN's by estimate (kernels/planned/gpu_sizes.h).
  std::map<std::string, int64_t> bytes_by_kind;
  // Of these, what is left of the state while the next one is built beside it.
  int64_t state_bytes = 0;
};

// Of a step of phase `index` with this model and layout on one of `ranks`.
StepMemory PlanStepMemory(const Model& model, const FlatLayout& layout, const RunSpec& run,
                          int index, int ranks, const Device& device);

// What a step that removes units holds beside what others do: inner products of inputs, and a
// weight whole where no rank has it so. 0 where the phase does not prune.
int64_t PlanRemovalMemory(const std::vector<Parameter>& parameters, const RunSpec& run, int index,
                          int ranks);

}  // namespace filigree
