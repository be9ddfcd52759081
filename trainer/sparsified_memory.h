// What the sparsified weights of a phase hold on one rank, and what computing with them takes
// beside: planned from sizes, or counted on a state's own arrays.
#pragma once

#include <cstdint>

#include "kernels/base/device.h"
#include "trainer/model/model.h"
#include "trainer/spec.h"
#include "trainer/training_state.h"

namespace filigree {

struct SparsifiedMemory {
  int64_t state = 0;  // values, gradients, master and moments of what is stored
  // The same if every cell were stored: what the dense model holds for these weights.
  int64_t dense_state = 0;
  int64_t compute_copies = 0;    // expanded weights that compute reads
  int64_t indices = 0;           // layouts, and the work lists of their products
  int64_t gradient_scratch = 0;  // one layer's dense gradient
  bool any() const { return dense_state > 0; }
};

// Of the model of phase `phase` on one of `ranks`. Gradients that share memory (GradientSlots) are
// no weight's and are left out.
SparsifiedMemory PlanSparsifiedMemory(const Model& model, const RunSpec& run, int phase, int ranks,
                                      const Device& device);
// Of a state that has run a step: `state` summed over its arrays, copies and indices as the device
// accounts for them.
SparsifiedMemory CountSparsifiedMemory(TrainingState& state, const RunSpec& run, int ranks,
                                       const Device& device);

}  // namespace filigree
