#include "trainer/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "kernels/base/log.h"
#include "kernels/base/progress.h"
#include "trainer/agree.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/config_changes.h"
#include "trainer/evaluator.h"
#include "trainer/generator.h"
#include "trainer/micro_batches.h"
#include "trainer/peak_flops.h"
#include "trainer/phase_data.h"
#include "trainer/pruner.h"
#include "trainer/pruning/validate.h"
#include "trainer/resume.h"
#include "trainer/run_directory.h"
#include "trainer/run_inputs.h"
#include "trainer/sample_tree.h"
#include "trainer/schedule.h"
#include "trainer/state_succession.h"
#include "trainer/stop_signal.h"
#include "trainer/teacher.h"
#include "trainer/topology/plan.h"
#include "trainer/topology_updater.h"
#include "trainer/train_log.h"
#include "trainer/train_step.h"

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
        topology_(run_, communicator, backend),
        pruner_(run_, communicator, backend) {}

  Status Run();

 private:
  Status Start(const TrainOptions& options);
  void TellStart(const CheckpointReader& start) const;
  Status Reload();
  Status CheckSizes(int phase) const;
  Status EnterPhase(int phase);
  Status TakeTeacher();
  Status StartTopology();
  void ProbeGradients();
  void UpdateTopology();
  void Prune(int64_t removed);
  PruningMetrics DescribePruning(const char* what, int64_t dropped, int64_t bytes) const;
  Status RunPhase();
  bool TakeBatch();
  StepSamples Samples() {
    return {.tokens = batch_->tokens.data(),
            .targets = batch_->targets.data(),
            .sequences = batch_->count,
            .valid_tokens = valid_tokens_,
            .statistics = topology_.Collected()};
  }
  int64_t RunStep(StepMetrics* metrics);
  void LeaveStepOut(StepMetrics* metrics);
  Status AfterStep(const StepMetrics& metrics, int64_t removed);
  Status SaveCheckpoint();
  void EvaluateAndSample();

  const PhaseSpec& phase() const { return run_.phases[phase_]; }
  int64_t step_in_phase() const { return step_ - phase().first_step; }
  // The position in the phase's data and learning rate: a phase that rewinds goes on from there.
  int64_t rewound() const { return std::max<int64_t>(phase().rewind_step, 0); }
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
  PhaseData data_;
  std::unique_ptr<Prefetcher> prefetcher_;
  std::unique_ptr<Teacher> teacher_;  // nullptr: the phase has none
  std::unique_ptr<TrainStep> train_step_;
  StateSuccession state_;
  TopologyUpdater topology_;
  Pruner pruner_;

  const SampleBatch* batch_ = nullptr;  // this rank's samples of the step
  double valid_tokens_ = 0;             // of the step, over all ranks
  int64_t skipped_steps_ = 0;
  int consecutive_skips_ = 0;
  bool spoiled_ = false;        // the last step changed layers by gradients that were not finite
  std::set<int64_t> left_out_;  // such steps, which are not tried again
  bool trained_ = false;        // the state is that of a phase that has begun
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
    pruner_.Restore(info.pruning);
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
  left_out_.insert(step_);
  LogInfo("the gradients of step " + std::to_string(step_ + 1) +
          " were not finite, and layers had been updated when that was seen: going back, to leave "
          "that step's update out");
  prefetcher_.reset();
  state_.Release();
  step_ = tokens_ = skipped_steps_ = 0;
  phase_ = consecutive_skips_ = 0;
  trained_ = spoiled_ = false;
  TrainOptions options = options_;
  if (saver_.written_step() >= 0) {
    options.resume = CheckpointDirectory(options.run_dir, saver_.written_step());
  }
  return Start(options);
}

// What is due before the next step, if anything.
void Trainer::UpdateTopology() {
  const TopologyUpdater::Update update = topology_.Propose(*state_, step_, *stream_);
  if (!update.due) return;
  // Passes that collected statistics for this update alone belong to it.
  int64_t bytes = state_->exchange().TakeBytes().total() + topology_.TakeBytes();
  if (update.changed()) bytes += state_.ChangeLayouts(update.layouts, step_);
  CheckLayoutsAgree(state_->parameters(), communicator_);
  bytes += LayoutCheckBytes(state_->parameters(), communicator_.size());
  log_->Topology({.step = step_,
                  .topology = update.rules,
                  .dropped = update.dropped,
                  .grown = update.grown,
                  .exchanged_bytes = bytes},
                 state_->model());
}

PruningMetrics Trainer::DescribePruning(const char* what, int64_t dropped, int64_t bytes) const {
  const auto live = pruner_.LiveUnits();
  return {.step = step_,
          .topology = what,
          .dropped = dropped,
          .stored_values = CountParameters(run_.model),
          .exchanged_bytes = bytes,
          .live_values = pruner_.LiveParameters(),
          .attention_units = live[static_cast<size_t>(UnitKind::kAttention)],
          .feed_forward_units = live[static_cast<size_t>(UnitKind::kFeedForward)],
          .stem_units = live[static_cast<size_t>(UnitKind::kStem)]};
}

// The step that was just done removed so many parameters; compaction where it is due.
void Trainer::Prune(int64_t removed) {
  if (removed > 0) {
    log_->Pruning(DescribePruning("pruning", removed, pruner_.TakeBytes()), state_->model(),
                  /*compaction_seconds=*/std::nullopt);
  }
  const std::optional<Compaction> compaction = pruner_.DueCompaction(step_);
  if (!compaction) return;
  ReportActivity("compacting the model");
  const auto begin = std::chrono::steady_clock::now();
  const int64_t stored = CountParameters(run_.model);
  run_.model = compaction->model;
  int64_t bytes = state_.Compact(pruner_.table(), *compaction);
  pruner_.Compacted(*compaction);
  topology_.BeginPhase(phase_);
  CheckLayoutsAgree(state_->parameters(), communicator_);
  bytes += LayoutCheckBytes(state_->parameters(), communicator_.size());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  log_->Pruning(DescribePruning("compaction", stored - CountParameters(run_.model), bytes),
                state_->model(), seconds.count());
}

// Gradients of the coming step's batch, for a rule that scores before it.
void Trainer::ProbeGradients() {
  topology_.StartCollecting(state_->model(), step_, *stream_);
  TakeBatch();
  const StepResult result = train_step_->Gradients(*state_, Samples());
  topology_.FinishCollecting(state_->model(), *stream_);
  if (!std::isfinite(result.update.grad_norm)) topology_.DiscardStatistics();
}

// Once a phase, at its start: what its rules do there.
Status Trainer::StartTopology() {
  const StatisticsNeeds needs = topology_.NeedsAt(step_);
  if (needs.any()) ProbeGradients();
  if (needs.hessian) {
    topology_.PerturbValues(*state_, *stream_);
    ProbeGradients();
    topology_.FinishHessian(*state_, *stream_);
  }
  UpdateTopology();
  return phase().rewind_step < 0 ? OkStatus() : state_.Rewind(options_.run_dir);
}

// The phase's teacher, after the one of the phase before has gone.
Status Trainer::TakeTeacher() {
  teacher_.reset();
  if (!phase().distillation.on()) return OkStatus();
  ReportActivity("loading the teacher");
  auto teacher = Teacher::Load(phase(), backend_, *stream_);
  RETURN_IF_ERROR(AgreeOnStatus(teacher.status(), communicator_));
  teacher_ = std::move(teacher).value();
  return OkStatus();
}

// What phases from this one on ask of a model whose size earlier ones have decided by now.
Status Trainer::CheckSizes(int phase) const {
  Status status = ValidateSizesFrom(run_, phase, pruner_.progress());
  for (size_t i = static_cast<size_t>(phase); status.ok() && i < run_.phases.size(); ++i) {
    status = ValidateParameterisations(LinearSpecs(run_.model), run_.phases[i]);
    if (run_.phases[i].pruning) break;  // which leaves other sizes
  }
  return AgreeOnStatus(status, communicator_);
}

Status Trainer::EnterPhase(int phase) {
  ReportActivity("entering a phase");
  RETURN_IF_ERROR(CheckSizes(phase));
  const bool first_entry = !prefetcher_;
  phase_ = phase;
  auto data = OpenPhaseData(run_.phases[phase], run_.model, run_.seed);
  RETURN_IF_ERROR(AgreeOnStatus(data.status(), communicator_));
  prefetcher_.reset();
  data_ = std::move(data).value();
  prefetcher_ = std::make_unique<Prefetcher>(data_.train.get());
  const bool begins = state_->phase() != phase || !trained_;
  if (state_->phase() != phase) state_.EnterPhase(phase, step_);
  state_->model().set_hooks({});
  RETURN_IF_ERROR(TakeTeacher());
  train_step_ = std::make_unique<TrainStep>(this->phase().batch, backend_, *stream_);
  train_step_->set_teacher(teacher_.get(), this->phase().distillation);
  if (SumsInTree(run_, backend_.device())) train_step_->SumInTree(communicator_);
  if (ReplaysPasses(run_.graphs, this->phase().batch, state_->model(), backend_.device())) {
    train_step_->ReplayPasses();
  }
  topology_.BeginPhase(phase);
  pruner_.BeginPhase(phase);
  if (begins) RETURN_IF_ERROR(StartTopology());
  trained_ = true;
  CheckLayoutsAgree(state_->parameters(), communicator_);
  const double taught = teacher_ ? teacher_->flops_per_token(this->phase().batch.seq_len) : 0.0;
  log_->BeginPhase(phase, step_, state_->model(), taught, backend_, communicator_.size());
  if (state_->updates_by_layers() && this->phase().optimizer.clip_norm > 0) {
    LogInfo("per-layer updates: clipping is approximate, by the gradient norm of the step before");
  }
  LogInfo(data_.train->Describe());
  // A resumed run evaluated this very state when it was saved.
  if (!first_entry || step_ == this->phase().first_step) EvaluateAndSample();
  return OkStatus();
}

// Reads the step's samples and counts its targets over all ranks. False: some rank was asked to
// stop.
bool Trainer::TakeBatch() {
  const int64_t samples = phase().batch.sequences_per_step();
  const SampleRange mine = PartitionSamples(samples, communicator_.rank(), communicator_.size());
  const int64_t first = (step_in_phase() + rewound()) * samples + mine.begin;
  batch_ = &prefetcher_->Take(first, mine.count);
  if (step_in_phase() + 1 < phase().steps) prefetcher_->Request(first + samples, mine.count);
  const auto valid = std::count_if(batch_->targets.begin(), batch_->targets.end(),
                                   [](int32_t target) { return target >= 0; });
  double sums[] = {static_cast<double>(valid), StopRequested() ? 1.0 : 0.0};
  communicator_.AllReduceHost(sums, ReduceOp::kSum);
  state_->exchange().CountControl(sizeof(sums));
  valid_tokens_ = sums[0];
  return sums[1] == 0;
}

// Returns how many parameters pruning removed. What pruning does at a step is part of its time.
int64_t Trainer::RunStep(StepMetrics* metrics) {
  const auto begin = std::chrono::steady_clock::now();
  GradientExchange& exchange = state_->exchange();
  const double lr =
      LearningRate(phase().schedule, step_in_phase() + rewound(), phase().steps + rewound());
  topology_.StartCollecting(state_->model(), step_ + 1, *stream_);
  pruner_.BeforeStep(*state_, step_, *stream_);
  const StepResult result = train_step_->Run(*state_, Samples(), phase().optimizer, lr,
                                             UpdatesSinceFreshMoments(run_, phase_, step_));
  topology_.FinishCollecting(state_->model(), *stream_);
  const Optimizer::Result& update = result.update;
  spoiled_ = update.spoiled;
  if (update.skipped) topology_.DiscardStatistics();
  skipped_steps_ += update.skipped;
  consecutive_skips_ = update.skipped ? consecutive_skips_ + 1 : 0;

  double sums[] = {result.loss_sum, result.divergence_sum};
  const std::span<double> reduced(sums, teacher_ ? 2 : 1);
  communicator_.AllReduceHost(reduced, ReduceOp::kSum);
  exchange.CountControl(static_cast<int64_t>(reduced.size_bytes()));
  const int64_t removed = pruner_.AfterStep(*state_, step_ + 1, update.skipped, *stream_);
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - begin;
  metrics->loss = sums[0] / std::max(valid_tokens_, 1.0);
  if (teacher_) metrics->distillation_loss = sums[1] / std::max(valid_tokens_, 1.0);
  metrics->lr = lr;
  metrics->grad_norm = update.grad_norm;
  metrics->step_ms = elapsed.count();
  metrics->exchanged_bytes = exchange.TakeBytes().total();
  metrics->skipped_steps = skipped_steps_;
  return removed;
}

// A step that spoiled the state when it was tried.
void Trainer::LeaveStepOut(StepMetrics* metrics) {
  topology_.DiscardStatistics();
  ++skipped_steps_;
  ++consecutive_skips_;
  metrics->loss = metrics->grad_norm = std::nan("");
  metrics->exchanged_bytes = state_->exchange().TakeBytes().total();
  metrics->skipped_steps = skipped_steps_;
}

Status Trainer::SaveCheckpoint() {
  return saver_.Save(*state_, step_, tokens_, pruner_.progress(), inputs_.tokenizer_dir, *stream_);
}

void Trainer::EvaluateAndSample() {
  if (!data_.validation) return;
  ReportActivity("evaluating");
  const EvaluationResult result =
      Evaluate(state_->model(), *data_.validation, run_.evaluation.tokens,
               phase().batch.micro_batch_sequences, run_.evaluation.formula, train_step_->feeder(),
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
  UpdateTopology();
  Prune(removed);
  if (consecutive_skips_ >= kMaxConsecutiveSkips) {
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
    if (!TakeBatch()) {
      RETURN_IF_ERROR(SaveCheckpoint());
      return Interrupted("stopped by a signal after step " + std::to_string(step_) +
                         "; the same command goes on from there");
    }
    StepMetrics metrics;
    int64_t removed = 0;
    left_out_.contains(step_) ? LeaveStepOut(&metrics) : void(removed = RunStep(&metrics));
    if (spoiled_) return Reload();
    ++step_;
    tokens_ += phase().batch.tokens_per_step;
    metrics.step = step_;
    metrics.tokens = tokens_;
    RETURN_IF_ERROR(AfterStep(metrics, removed));
  }
  pruner_.EndPhase();
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
