// When a run saves checkpoints, and which old ones it keeps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "kernels/base/device.h"
#include "kernels/base/status.h"
#include "trainer/trainer.h"
#include "trainer/training_state.h"

namespace filigree {

class CheckpointSaver {
 public:
  // Both must outlive it.
  CheckpointSaver(const TrainOptions& options, Communicator& communicator)
      : options_(options), communicator_(communicator) {}

  // The state at `step` lies in a checkpoint already.
  void MarkSaved(int64_t step) { saved_step_ = step; }
  // The last step that was saved here; -1: none yet. Others in the directory may be another run's.
  int64_t written_step() const { return written_step_; }
  // Whether a later phase rewinds to `step`.
  bool IsRewindTarget(int64_t step) const;
  // Saves the state after `step` steps and `tokens` tokens, unless it is saved, and removes what
  // need not be kept. Collective; every rank returns the same status.
  Status Save(TrainingState& state, int64_t step, int64_t tokens,
              const std::optional<PruningProgress>& pruning, const std::string& tokenizer_dir,
              Stream& stream);

 private:
  Status RemoveOld() const;

  const TrainOptions& options_;
  Communicator& communicator_;
  int64_t saved_step_ = -1;
  int64_t written_step_ = -1;
};

}  // namespace filigree
