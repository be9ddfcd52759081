// Scores of a training state's weights for the topology engine (trainer/topology/update.h).
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/plan.h"
#include "trainer/topology/update.h"
#include "trainer/training_state.h"

namespace filigree {

// What a step collected for one weight.
struct WeightStatistics {
  DeviceBuffer grads, hessian_grads;  // F32 [out, in], or nothing
  std::vector<double> input_squares;  // [in], or nothing
};

class StateScores final : public ScoreSource {
 public:
  struct Weight {
    int parameter = 0;
    const WeightStatistics* statistics = nullptr;  // or none
  };
  // All must outlive it. Adds the bytes that gathering exchanges to *bytes.
  StateScores(const TrainingState& state, std::vector<Weight> weights, const Criterion& criterion,
              bool grows_by_gradient, uint64_t seed, Communicator& communicator, Backend& backend,
              Stream& stream, int64_t* bytes);

  // Collective.
  ConstTensorView Keep(size_t weight, const PreparedLayout& prepared, TensorView memory) override;
  // |g|, summed over the cells of each unit, stored or not.
  ConstTensorView Grow(size_t weight) override;

 private:
  const Parameter& ParameterOf(size_t weight) const;

  const TrainingState& state_;
  const std::vector<Weight> weights_;
  const Criterion& criterion_;
  const bool grows_by_gradient_;
  const uint64_t seed_;
  Communicator& communicator_;
  Backend& backend_;
  Stream& stream_;
  int64_t* bytes_;
  DeviceBuffer gathered_;     // the master of a weight
  DeviceBuffer grow_scores_;  // of the blocks of a weight
};

// The device memory that an event of `entry` takes beside what was collected: ProposalBytes and the
// buffers above, where weights store `elements` (parameters' segments, in the entry's order).
// `holds_master`: see HoldsWhole (device_segments.h), of the master.
int64_t SelectionBytes(const TopologyEntry& entry, const std::vector<int64_t>& elements,
                       bool holds_master);

// The device memory of the indices of an entry's new layouts, on a device that has them in memory of
// its own; they become the new state's.
int64_t IndexBytes(const TopologyEntry& entry, const std::vector<int64_t>& elements);

}  // namespace filigree
