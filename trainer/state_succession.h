// The training state of a run as the run goes on: built at its start, rebuilt for each next phase
// and for each new set of layouts or sizes, taken back where a phase rewinds.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/spec.h"
#include "trainer/training_state.h"

namespace filigree {

// A state with other layouts is built beside the old one, whose activations are released first.
// Everything but the accessors is collective.
class StateSuccession {
 public:
  // All must outlive it.
  StateSuccession(const RunSpec& run, Communicator& communicator, Backend& backend, Stream& stream)
      : run_(run), communicator_(communicator), backend_(backend), stream_(stream) {}

  // The values that the run begins with are this model's (RunSpec::init_from); else they are drawn.
  void set_initial(std::unique_ptr<CheckpointReader> initial) { initial_ = std::move(initial); }
  // The first state: the checkpoint's where there is one, else initial values.
  Status Build(int phase, const CheckpointReader* start);

  // Frees the state; Build may follow.
  void Release() { state_.reset(); }

  TrainingState& operator*() { return *state_; }
  TrainingState* operator->() { return state_.get(); }

  // The state of the phase before becomes that of `phase`, which begins at step `step`.
  void EnterPhase(int phase, int64_t step);
  // Moves onto other layouts (by parameter name) within a phase, after `step` steps of the run.
  // Returns the bytes exchanged.
  int64_t ChangeLayouts(const std::map<std::string, SparseLayout>& layouts, int64_t step);
  // Moves into the smaller model that the run's has become, by `compaction` (of `table`). Returns
  // the bytes exchanged.
  int64_t Compact(const UnitTable& table, const Compaction& compaction);
  // Survivors go back to where they were after the current phase's rewind_step steps of the run.
  Status Rewind(const std::string& run_dir);

 private:
  Status TakeInitialValues();
  // Builds the state of the phase, all zeros, and returns the one before.
  std::unique_ptr<TrainingState> Replace(int phase,
                                         const std::map<std::string, SparseLayout>& layouts);
  int64_t Rebuild(int phase, const std::map<std::string, SparseLayout>& layouts, bool keep_moments,
                  int64_t step);

  const RunSpec& run_;
  Communicator& communicator_;
  Backend& backend_;
  Stream& stream_;
  std::unique_ptr<CheckpointReader> initial_;
  std::unique_ptr<TrainingState> state_;
};

}  // namespace filigree
