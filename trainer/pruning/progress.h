// The state of structured pruning: everything that is not a function of the configuration and the
// step. Checkpoints hold it (pruning.safetensors).
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace filigree {

// Of a unit that nothing removes yet.
inline constexpr int64_t kUnitStays = std::numeric_limits<int64_t>::max();

struct PruningProgress {
  // By unit of the model as it is now (UnitTable's numbers): the step of the run after which it is
  // zero, or kUnitStays.
  std::vector<int64_t> zero_at;
  // Moving averages of saliency's sums, `kSmoothed` a unit (saliency.h).
  std::vector<double> smoothed;
  int64_t batches = 0;             // that went into them
  double level = 0;                // the moving average of a batch's size, against outliers
  int64_t phase = -1;              // whose ramp it is
  bool done = false;               // that ramp is over: nothing goes any more
  int64_t initial_parameters = 0;  // when that ramp began

  bool operator==(const PruningProgress&) const = default;
};

}  // namespace filigree
