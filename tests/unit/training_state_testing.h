// What the tests of training states and steps share: one process's state on the CPU, and runs.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : backend_(device_), stream_(device_.NewStream()) {}

  std::unique_ptr<TrainingState> MakeState(const RunSpec& run, int phase) {
    return std::make_unique<TrainingState>(run, phase, std::map<std::string, SparseLayout>{},
                                           *communicator_, backend_, *stream_);
  }
  // All stored values of a parameter expanded to its logical cells.
  std::vector<float> Dense(TrainingState& state, int parameter) {
    const Parameter& p = state.parameters()[parameter];
    std::vector<float> dense(p.logical_count(), 0.0f);
    const auto logical = p.layout.LogicalIndices();
    const float* values = state.buffer().Values(parameter).As<float>();
    for (size_t slot = 0; slot < logical.size(); ++slot) {
      if (logical[slot] >= 0) dense[logical[slot]] = values[slot];
    }
    return dense;
  }

  CpuDevice device_;
  CpuBackend backend_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> communicator_ = MakeSingleProcessCommunicator();
};

// A run whose larger matrices have codes, in each form of the state.
inline std::vector<RunSpec> CompactRuns() {
  std::vector<RunSpec> runs;
  for (int form = 0; form < 4; ++form) {
    RunSpec run = OddRun();
    run.model.feed_forward = 800;  // 42 x 800, of which blocks store 8448
    for (PhaseSpec& phase : run.phases) {
      phase.optimizer.state = {.bf16 = form % 2 == 1, .eight_bit_moments = form >= 2};
    }
    runs.push_back(run);
  }
  return runs;
}

// Four sequences that repeat themselves.
class RepeatingText {
 public:
  RepeatingText() {
    for (int i = 0; i < 65; ++i) text_.push_back(i % 16 * (i % 3 + 1));
  }
  StepSamples samples() const {
    return {
        .tokens = text_.data(), .targets = text_.data() + 1, .sequences = 4, .valid_tokens = 64};
  }

 private:
  std::vector<int32_t> text_;
};

}  // namespace filigree
