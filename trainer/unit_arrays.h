// Units of structured pruning (trainer/pruning/groups.h) in the arrays of a training state.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/pruning/groups.h"
#include "trainer/training_state.h"

namespace filigree {

// Multiplies all cells of unit i by factors[i]: values, here and on every shard, and master; at a
// factor of zero the moments become zero too, so that the unit stays at zero. Call when no gather
// of values is under way. Weights must be dense, states and gradients whole and in fp32.
void ScaleUnits(TrainingState& state, const UnitTable& table, const std::vector<float>& factors,
                Backend& backend, Stream& stream);

// What saliency is made from, of one unit: over its cells, with value w and gradient g.
struct UnitSums {
  double gw = 0;          // the derivative of the loss by the unit's gate (over the gate's cells)
  double gw_squares = 0;  // sum of (g w)^2, the same cells
  double w_squares = 0;   // sum of w^2, likewise
};
enum class UnitCells { kGate, kAll };  // of AxisUnits::gate, or all that go with the unit

// Sums over the state's masters and exchanged gradients, all ranks' pieces together; every rank
// gets the same bits. Collective where the state is sharded; adds the bytes that it exchanges.
std::vector<UnitSums> SumUnits(const TrainingState& state, const UnitTable& table, UnitCells cells,
                               Communicator& communicator, Backend& backend, Stream& stream,
                               int64_t* bytes);

}  // namespace filigree
