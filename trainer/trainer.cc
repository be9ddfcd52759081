#include "trainer/trainer.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/base/log.h"
#include "kernels/base/progress.h"
#include "trainer/agree.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/config_changes.h"
#include "trainer/evaluator.h"
#include "trainer/generator.h"
#include "trainer/micro_batches.h"
#include "trainer/phase_steps.h"
#include "trainer/pruning/validate.h"
#include "trainer/resume.h"
#include "trainer/run_directory.h"
#include "trainer/run_inputs.h"
#include "trainer/state_succession.h"
#include "trainer/structure_events.h"
#include "trainer/topology/plan.h"
#include "trainer/train_log.h"

namespace filigree {
namespace {

// A run whose gradients stay non-finite this long will not recover by skipping.
constexpr int kMaxConsecutiveSkips = 20;

class Trainer {
 public:
  Trainer(const TrainOptions& options, Communicator& communicator, Backend& backend)
      : options_(options),
        run_(WithMicroBatchesOf(communicator.size(), options.run)),
        communicator_(communicator),
        backend_(backend),
        stream_(backend.device().NewStream()),
        saver_(options, communicator),
        state_(run_, communicator, backend, *stream_),
        structure_(run_, state_, communicator, backend, *stream_),
        steps_(run_, state_, structure_, communicator, backend, *stream_) {}

  Status Run();

 private:
  Status Start(const TrainOptions& options);
  void TellStart(const CheckpointReader& start) const;
  Status Reload();
  Status CheckSizes(int phase);
  Status EnterPhase(int phase);
  Status StartStructure();
  Status RunPhase();
  Status AfterStep(const StepMetrics& metrics, int64_t removed);
  Status SaveCheckpoint();
  void EvaluateAndSample();

  const PhaseSpec& phase() const { return run_.phases[phase_]; }
  bool last_of_phase() const { return step_ == phase().first_step + phase().steps; }
  bool Due(int64_t every) const { return last_of_phase() || (every > 0 && step_ % every == 0); }

  const TrainOptions& options_;
  RunSpec run_;  // its model is the one that is being trained: compaction makes it smaller
  Communicator& communicator_;
  Backend& backend_;
  std::unique_ptr<Stream> stream_;

  RunInputs inputs_;
  CheckpointSaver saver_;
  std::unique_ptr<TrainLog> log_;  // rank 0 writes, the others' is silent

  int64_t step_ = 0;    // optimizer steps done
  int64_t tokens_ = 0;  // tokens seen by all ranks
  int phase_ = 0;
  StateSuccession state_;
  StructureEvents structure_;
  PhaseSteps steps_;
  bool trained_ = false;  // the state is that of a phase that has begun
};

Status Trainer::Start(const TrainOptions& options) {
  ReportActivity("opening its inputs");
  auto opened_inputs = OpenRunInputs(options, communicator_, backend_.device());
  RETURN_IF_ERROR(AgreeOnStatus(opened_inputs.status(), communicator_));
  inputs_ = std::move(opened_inputs).value();
  const std::unique_ptr<CheckpointReader> start = std::move(inputs_.start);
  if (start) {
    const CheckpointInfo& info = start->info();
    step_ = info.step;
    tokens_ = info.tokens;
    saver_.MarkSaved(step_);
    trained_ = info.has_moments;
    run_.model = ResumedModel(info.model, run_.model);
    structure_.pruner().Restore(info.pruning);
    phase_ =
        info.has_moments ? std::min<int>(info.phase, static_cast<int>(run_.phases.size()) - 1) : 0;
  }
  if (start && step_ < run_.total_steps()) RETURN_IF_ERROR(CheckSizes(run_.PhaseIndexOf(step_)));
  RETURN_IF_ERROR(AgreeOnStatus(
      start ? CheckLayouts(start->info(), run_, phase_, start->directory()) : OkStatus(),
      communicator_));

  Status opened;
  if (communicator_.rank() == 0) opened = OpenRunDirectory(options_.run_dir, options_.config_text);
  RETURN_IF_ERROR(AgreeOnStatus(opened, communicator_));
  auto log = TrainLog::Open(run_, options_.run_dir, step_, communicator_.rank() == 0);
  RETURN_IF_ERROR(AgreeOnStatus(log.status(), communicator_));
  log_ = std::move(log).value();
  LogInfo("effective configuration:\n" + options_.config_text);
  if (start) TellStart(*start);
  if (inputs_.initial) {
    if (!start) LogInfo("starting from " + inputs_.initial->directory());
    state_.set_initial(std::move(inputs_.initial));
  }
  ReportActivity("building the model");
  return AgreeOnStatus(state_.Build(phase_, start.get()), communicator_);
}

void Trainer::TellStart(const CheckpointReader& start) const {
  LogInfo("going on from " + start.directory() + " (step " + std::to_string(step_) + ")");
  const std::string& before = start.info().config_text;
  if (before.empty()) return;
  const std::string changes = DescribeConfigChanges(before, options_.config_text);
  if (!changes.empty()) LogInfo("not as it was configured when that was saved: " + changes);
}

// The state is spoiled: goes on from what the last complete checkpoint holds (or from the start),
// and leaves the step that spoiled it out.
Status Trainer::Reload() {
  LogInfo("the gradients of step " + std::to_string(step_ + 1) +
          " were not finite, and layers had been updated when that was seen: going back, to leave "
          "that step's update out");
  steps_.GoBackAndLeaveOut(step_);
  state_.Release();
  step_ = tokens_ = 0;
  phase_ = 0;
  trained_ = false;
  TrainOptions options = options_;
  if (saver_.written_step() >= 0) {
    options.resume = CheckpointDirectory(options.run_dir, saver_.written_step());
  }
  return Start(options);
}

// Once a phase, at its start.
Status Trainer::StartStructure() {
  const auto gradients = [&] {
    steps_.TakeBatch(step_);
    return steps_.Gradients();
  };
  structure_.StartPhase(step_, gradients, *log_);
  return phase().rewind_step < 0 ? OkStatus() : state_.Rewind(options_.run_dir);
}

// What phases from this one on ask of a model whose size earlier ones have decided by now.
Status Trainer::CheckSizes(int phase) {
  Status status = ValidateSizesFrom(run_, phase, structure_.pruner().progress());
  for (size_t i = static_cast<size_t>(phase); status.ok() && i < run_.phases.size(); ++i) {
    status = ValidateParameterisations(LinearSpecs(run_.model), run_.phases[i]);
    if (run_.phases[i].pruning) break;  // which leaves other sizes
  }
  return AgreeOnStatus(status, communicator_);
}

Status Trainer::EnterPhase(int phase) {
  ReportActivity("entering a phase");
  RETURN_IF_ERROR(CheckSizes(phase));
  const bool first_entry = !steps_.batches().open();
  phase_ = phase;
  RETURN_IF_ERROR(steps_.OpenData(phase));
  const bool begins = state_->phase() != phase || !trained_;
  if (state_->phase() != phase) state_.EnterPhase(phase, step_);
  RETURN_IF_ERROR(steps_.Begin());
  structure_.BeginPhase(phase);
  if (begins) RETURN_IF_ERROR(StartStructure());
  trained_ = true;
  CheckLayoutsAgree(state_->parameters(), communicator_);
  log_->BeginPhase(phase, step_, state_->model(), steps_.teacher_flops_per_token(), backend_,
                   communicator_.size());
  if (state_->updates_by_layers() && this->phase().optimizer.clip_norm > 0) {
    LogInfo("per-layer updates: clipping is approximate, by the gradient norm of the step before");
  }
  LogInfo(steps_.batches().train().Describe());
  // A resumed run evaluated this very state when it was saved.
  if (!first_entry || step_ == this->phase().first_step) EvaluateAndSample();
  return OkStatus();
}

Status Trainer::SaveCheckpoint() {
  return saver_.Save(*state_, step_, tokens_, structure_.pruner().progress(), inputs_.tokenizer_dir,
                     *stream_);
}

void Trainer::EvaluateAndSample() {
  if (steps_.batches().validation() == nullptr) return;
  ReportActivity("evaluating");
  const EvaluationResult result =
      Evaluate(state_->model(), *steps_.batches().validation(), run_.evaluation.tokens,
               phase().batch.micro_batch_sequences, run_.evaluation.formula, steps_.feeder(),
               communicator_, *stream_);
  log_->Evaluation(step_, result);
  if (!inputs_.tokenizer) return;
  for (const std::string& prompt : run_.evaluation.sample_prompts) {
    // Every rank generates: under ZeRO-1 the first pass waits for collectives.
    SamplingOptions sampling;
    sampling.tokens = run_.evaluation.sample_tokens;
    sampling.seed = run_.seed;
    sampling.max_context = phase().batch.seq_len;
    log_->Sample(Generate(state_->model(), *inputs_.tokenizer, prompt, sampling, backend_.device(),
                          *stream_));
  }
}

Status Trainer::AfterStep(const StepMetrics& metrics, int64_t removed) {
  log_->Step(metrics);
  structure_.AfterStep(step_, removed, *log_);
  if (steps_.consecutive_skips() >= kMaxConsecutiveSkips) {
    return MachineError(
        "the gradients were not finite in " + std::to_string(kMaxConsecutiveSkips) +
        " consecutive steps up to step " + std::to_string(step_) +
        "; lower schedule.lr, lengthen the warm-up or resume from an older checkpoint");
  }
  if (Due(run_.evaluation.every_steps)) EvaluateAndSample();
  if (Due(run_.checkpoint_every_steps) || saver_.IsRewindTarget(step_)) {
    RETURN_IF_ERROR(SaveCheckpoint());
  }
  return OkStatus();
}

// To the end of the phase, or until the run has gone back to an earlier step.
Status Trainer::RunPhase() {
  while (!last_of_phase()) {
    ReportStep(step_);
    ReportActivity("training");
    if (!steps_.TakeBatch(step_)) {
      RETURN_IF_ERROR(SaveCheckpoint());
      return Interrupted("stopped by a signal after step " + std::to_string(step_) +
                         "; the same command goes on from there");
    }
    StepMetrics metrics;
    const int64_t removed = steps_.Run(step_, &metrics);
    if (steps_.spoiled()) return Reload();
    ++step_;
    tokens_ += phase().batch.tokens_per_step;
    metrics.step = step_;
    metrics.tokens = tokens_;
    RETURN_IF_ERROR(AfterStep(metrics, removed));
  }
  structure_.pruner().EndPhase();
  return OkStatus();
}

Status Trainer::Run() {
  RETURN_IF_ERROR(Start(options_));
  if (step_ == run_.total_steps()) {
    LogInfo(options_.run_dir + " is complete: " + std::to_string(step_) + " steps done");
    return OkStatus();
  }
  while (step_ < run_.total_steps()) {
    RETURN_IF_ERROR(EnterPhase(run_.PhaseIndexOf(step_)));
    RETURN_IF_ERROR(RunPhase());
  }
  log_->Finish();
  ReportStep(-1);
  return OkStatus();
}

}  // namespace

Status Train(const TrainOptions& options, Communicator& communicator, Backend& backend) {
  backend.set_deterministic(options.run.deterministic);
  return Trainer(options, communicator, backend).Run();
}

}  // namespace filigree
