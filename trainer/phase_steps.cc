#include "trainer/phase_steps.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/base/progress.h"
#include "trainer/agree.h"
#include "trainer/sample_tree.h"
#include "trainer/schedule.h"

namespace filigree {

Status PhaseSteps::OpenData(int phase) {
  phase_ = phase;
  return batches_.Open(this->phase(), run_.model, run_.seed);
}

Status PhaseSteps::Begin() {
  state_->model().set_hooks({});
  RETURN_IF_ERROR(TakeTeacher());
  train_step_ = std::make_unique<TrainStep>(phase().batch, backend_, stream_);
  train_step_->set_teacher(teacher_.get(), phase().distillation);
  if (SumsInTree(run_, backend_.device())) train_step_->SumInTree(communicator_);
  if (ReplaysPasses(run_.graphs, phase().batch, state_->model(), backend_.device())) {
    train_step_->ReplayPasses();
  }
  return OkStatus();
}

Status PhaseSteps::TakeTeacher() {
  teacher_.reset();
  if (!phase().distillation.on()) return OkStatus();
  ReportActivity("loading the teacher");
  auto teacher = Teacher::Load(phase(), backend_, stream_);
  RETURN_IF_ERROR(AgreeOnStatus(teacher.status(), communicator_));
  teacher_ = std::move(teacher).value();
  return OkStatus();
}

double PhaseSteps::teacher_flops_per_token() const {
  return teacher_ ? teacher_->flops_per_token(phase().batch.seq_len) : 0.0;
}

bool PhaseSteps::TakeBatch(int64_t step) {
  const bool last = step + 1 == phase().first_step + phase().steps;
  return batches_.Take(PositionOf(step), /*reads_ahead=*/!last, state_->exchange());
}

StepSamples PhaseSteps::Samples() {
  StepSamples samples = batches_.samples();
  samples.statistics = structure_.topology().Collected();
  return samples;
}

StepResult PhaseSteps::Train(int64_t step, double lr) {
  TopologyUpdater& topology = structure_.topology();
  topology.StartCollecting(state_->model(), step + 1, stream_);
  structure_.pruner().BeforeStep(*state_, step, stream_);
  const StepResult result = train_step_->Run(*state_, Samples(), phase().optimizer, lr,
                                             UpdatesSinceFreshMoments(run_, phase_, step));
  topology.FinishCollecting(state_->model(), stream_);
  spoiled_ = result.update.spoiled;
  if (result.update.skipped) topology.DiscardStatistics();
  skipped_ += result.update.skipped;
  consecutive_skips_ = result.update.skipped ? consecutive_skips_ + 1 : 0;
  return result;
}

int64_t PhaseSteps::Run(int64_t step, StepMetrics* metrics) {
  if (left_out_.contains(step)) return LeaveOut(metrics), 0;
  const auto begin = std::chrono::steady_clock::now();
  GradientExchange& exchange = state_->exchange();
  const double lr = LearningRate(phase().schedule, PositionOf(step), phase().steps + rewound());
  const StepResult result = Train(step, lr);

  double sums[] = {result.loss_sum, result.divergence_sum};
  const std::span<double> reduced(sums, teacher_ ? 2 : 1);
  communicator_.AllReduceHost(reduced, ReduceOp::kSum);
  exchange.CountControl(static_cast<int64_t>(reduced.size_bytes()));
  const int64_t removed =
      structure_.pruner().AfterStep(*state_, step + 1, result.update.skipped, stream_);
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - begin;
  const double tokens = std::max(batches_.valid_tokens(), 1.0);
  metrics->loss = sums[0] / tokens;
  if (teacher_) metrics->distillation_loss = sums[1] / tokens;
  metrics->lr = lr;
  metrics->grad_norm = result.update.grad_norm;
  metrics->step_ms = elapsed.count();
  metrics->exchanged_bytes = exchange.TakeBytes().total();
  metrics->skipped_steps = skipped_;
  return removed;
}

// A step that spoiled the state when it was tried.
void PhaseSteps::LeaveOut(StepMetrics* metrics) {
  structure_.topology().DiscardStatistics();
  ++skipped_;
  ++consecutive_skips_;
  metrics->loss = metrics->grad_norm = std::nan("");
  metrics->exchanged_bytes = state_->exchange().TakeBytes().total();
  metrics->skipped_steps = skipped_;
}

void PhaseSteps::GoBackAndLeaveOut(int64_t step) {
  left_out_.insert(step);
  batches_.Close();
  skipped_ = consecutive_skips_ = 0;
  spoiled_ = false;
}

}  // namespace filigree
