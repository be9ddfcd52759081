// The steps of the phase that a run is in: its data, its teacher, and what each step did.
#pragma once

#include <cstdint>
#include <memory>
#include <set>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/metrics/metrics_writer.h"
#include "trainer/spec.h"
#include "trainer/state_succession.h"
#include "trainer/step_batches.h"
#include "trainer/structure_events.h"
#include "trainer/teacher.h"
#include "trainer/train_step.h"

namespace filigree {

// Steps are those of the run, done before the one in question. Everything but the accessors is
// collective.
class PhaseSteps {
 public:
  // All must outlive it.
  PhaseSteps(const RunSpec& run, StateSuccession& state, StructureEvents& structure,
             Communicator& communicator, Backend& backend, Stream& stream)
      : run_(run),
        state_(state),
        structure_(structure),
        communicator_(communicator),
        backend_(backend),
        stream_(stream),
        batches_(communicator) {}

  // The phase's data first; then, once its state is there, its teacher, after the one of the phase
  // before has gone. All ranks return the same status.
  Status OpenData(int phase);
  Status Begin();
  const StepBatches& batches() const { return batches_; }
  BatchFeeder& feeder() { return train_step_->feeder(); }
  double teacher_flops_per_token() const;  // 0: the phase has none

  // Reads the step's samples. False: some rank was asked to stop.
  bool TakeBatch(int64_t step);
  // Gradients of what was taken, which change nothing.
  StepResult Gradients() { return train_step_->Gradients(*state_, Samples()); }
  // Trains on it; fills in what the step itself knows of its metrics. Returns how many parameters
  // pruning removed: what it does at a step is part of its time.
  int64_t Run(int64_t step, StepMetrics* metrics);

  // The last step changed layers by gradients that were not finite: the state is spoiled.
  bool spoiled() const { return spoiled_; }
  // The run goes back to an earlier state, and `step` is not tried again when it comes. Closes the
  // phase's data.
  void GoBackAndLeaveOut(int64_t step);
  // Steps in a row up to now whose gradients were not finite.
  int consecutive_skips() const { return consecutive_skips_; }

 private:
  const PhaseSpec& phase() const { return run_.phases[phase_]; }
  // The position in the phase's data and learning rate: a phase that rewinds goes on from there.
  int64_t PositionOf(int64_t step) const { return step - phase().first_step + rewound(); }
  int64_t rewound() const { return phase().rewind_step < 0 ? 0 : phase().rewind_step; }
  Status TakeTeacher();
  StepSamples Samples();
  StepResult Train(int64_t step, double lr);
  void LeaveOut(StepMetrics* metrics);

  const RunSpec& run_;
  StateSuccession& state_;
  StructureEvents& structure_;
  Communicator& communicator_;
  Backend& backend_;
  Stream& stream_;

  int phase_ = 0;
  StepBatches batches_;
  std::unique_ptr<Teacher> teacher_;
  std::unique_ptr<TrainStep> train_step_;

  int64_t skipped_ = 0;
  int consecutive_skips_ = 0;
  bool spoiled_ = false;
  std::set<int64_t> left_out_;
};

}  // namespace filigree
