// Per-layer updates: while backward goes on, a layer whose gradients are final is updated, and
// their memory serves the layers that follow.
//
// Backward finishes units (flat_layout.h) from the last to the first: head and final norm, each
// layer, embedding. With several ranks a unit's update waits until the next unit is done too, so
// that its exchange is hidden behind that unit's computation; the places of the gradients
// (GradientSlots) are as many. Everything runs on the stream that backward runs on.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "trainer/optimizer.h"
#include "trainer/training_state.h"

namespace filigree {

// One step; between construction and End all parameters are marked ready in backward's order.
class LayerUpdates {
 public:
  // Without `update` gradients are exchanged and their norm taken, and nothing changes. `state` and
  // `stream` must outlive it. Call before the step's last backward pass.
  LayerUpdates(TrainingState& state, const std::optional<Optimizer::UpdateArgs>& update,
               Stream& stream);

  // The exchange was told that this parameter's gradient is final.
  void Ready(int parameter);
  // All are. Collective.
  Optimizer::Result End();

 private:
  void Finish(int unit);

  TrainingState& state_;
  Stream& stream_;
  std::vector<int> missing_;  // parameters of each unit that are not ready
  std::deque<int> waiting_;   // units that are, and whose update is to come
  size_t most_waiting_;
};

}  // namespace filigree
