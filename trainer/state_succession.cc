#include "trainer/state_succession.h"

#include <utility>

#include "kernels/base/log.h"
#include "trainer/agree.h"
#include "trainer/resume.h"
#include "trainer/topology/plan.h"

namespace filigree {

Status StateSuccession::Build(int phase, const CheckpointReader* start) {
  std::map<std::string, SparseLayout> layouts;
  // An imported dense weight has no layout of its own: the phase's is drawn and its values gathered
  // into it.
  if (start) {
    for (const Parameter& parameter : start->info().parameters) {
      if (!start->info().has_moments && parameter.layout.kind() == LayoutKind::kDense) continue;
      layouts.emplace(parameter.name, parameter.layout);
    }
  } else if (initial_) {
    layouts = InitialLayouts(initial_->info(), run_);
  }
  state_ = std::make_unique<TrainingState>(run_, phase, layouts, communicator_, backend_, stream_);
  return start ? state_->Load(*start, /*moments=*/true, stream_) : TakeInitialValues();
}

Status StateSuccession::TakeInitialValues() {
  if (initial_) return state_->Load(*initial_, /*moments=*/false, stream_);
  state_->InitializeValues(stream_);
  backend_.device().ForgetPeak();  // the scratch of the start is gone
  return OkStatus();
}

std::unique_ptr<TrainingState> StateSuccession::Replace(
    int phase, const std::map<std::string, SparseLayout>& layouts) {
  state_->exchange().WaitAllValues(stream_);
  std::unique_ptr<TrainingState> previous = std::move(state_);
  previous->model().ReleaseActivations();
  state_ = std::make_unique<TrainingState>(run_, phase, layouts, communicator_, backend_, stream_);
  return previous;
}

int64_t StateSuccession::Compact(const UnitTable& table, const Compaction& compaction) {
  std::unique_ptr<TrainingState> previous = Replace(state_->phase(), {});
  const int64_t bytes = state_->TakeOver(*previous, table, compaction, stream_);
  previous.reset();
  backend_.device().ForgetPeak();  // what steps hold from now on is what they report
  return bytes;
}

int64_t StateSuccession::Rebuild(int phase, const std::map<std::string, SparseLayout>& layouts,
                                 bool keep_moments, int64_t step) {
  const std::unique_ptr<TrainingState> previous = Replace(phase, layouts);
  return state_->TakeOver(*previous, keep_moments, UpdatesSinceFreshMoments(run_, phase, step) - 1,
                          stream_);
}

void StateSuccession::EnterPhase(int phase, int64_t step) {
  const PhaseSpec& spec = run_.phases[phase];
  Rebuild(phase, InheritedLayouts(LinearSpecs(run_.model), spec, state_->Layouts()),
          spec.moments == Moments::kKeep, step);
}

int64_t StateSuccession::ChangeLayouts(const std::map<std::string, SparseLayout>& layouts,
                                       int64_t step) {
  return Rebuild(state_->phase(), layouts, /*keep_moments=*/true, step);
}

Status StateSuccession::Rewind(const std::string& run_dir) {
  const int64_t target = run_.phases[state_->phase()].rewind_step;
  if (target == 0) return AgreeOnStatus(TakeInitialValues(), communicator_);
  const std::string directory = CheckpointDirectory(run_dir, target);
  auto reader = CheckpointReader::Open(directory);
  RETURN_IF_ERROR(AgreeOnStatus(reader.status(), communicator_));
  LogInfo("rewound to " + directory);
  return AgreeOnStatus(state_->Load(**reader, /*moments=*/true, stream_), communicator_);
}

}  // namespace filigree
