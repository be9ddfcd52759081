#include "trainer/train_step.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/base/progress.h"
#include "trainer/sample_tree.h"

namespace filigree {
namespace {

// A step whose targets are all masked has zero gradients, whatever they are divided by.
double LossScale(const StepSamples& samples) { return 1.0 / std::max(samples.valid_tokens, 1.0); }

// Whether nothing happens during a micro-batch but its pass: values that travel are waited for in
// the first one, gradients leave in the last, and so do layers.
bool Replays(bool travels, bool first, bool last, const LayerUpdates* layers) {
  return (!travels || (!first && !last)) && (layers == nullptr || !last);
}

}  // namespace

TrainStep::TrainStep(const BatchSpec& batch, Backend& backend, Stream& stream)
    : batch_(batch),
      backend_(backend),
      stream_(stream),
      event_(backend.device().NewEvent()),
      feeder_(backend.device(), batch.micro_batch_sequences, batch.seq_len) {}

// Forward and backward of one micro-batch, its teacher's forward pass first.
void TrainStep::RunMicroBatch(Model& model, MicroBatch batch, double loss_scale, bool replay) {
  const int64_t count = batch.tokens.size(), rows = count / batch.seq_len;
  Distillation distillation;
  if (teacher_) {
    distillation = {.teacher = teacher_,
                    .temperature = distillation_.temperature,
                    .alpha = distillation_.alpha,
                    .divergences = feeder_.Divergences(rows, batch.seq_len)};
    batch.distillation = &distillation;
  }
  const std::optional<PassState> state = replay ? model.NextPass() : std::nullopt;
  const auto pass = [&] {
    if (state) model.SetNextPass(*state);  // what it is anyway, unless recording it has failed
    if (teacher_) teacher_->Forward(batch, stream_);
    model.ForwardBackward(batch, loss_scale, feeder_.Losses(rows, batch.seq_len), stream_);
  };
  if (!state) {
    pass();
  } else if (!replayed_->Run({.model = &model,
                              .state = *state,
                              .tokens = batch.tokens,
                              .seq_len = batch.seq_len,
                              .loss_scale = batch.loss_scale.empty() ? loss_scale : 0},
                             pass, stream_)) {
    model.PassWasReplayed();
  }
  feeder_.FetchLosses(count, stream_);
  if (teacher_) feeder_.FetchDivergences(count, stream_);
}

void TrainStep::TakeLosses(StepResult* result) {
  result->loss_sum += feeder_.TakeLosses();
  if (teacher_) result->divergence_sum += feeder_.TakeDivergences();
}

// Forward and backward of this rank's samples. Parameters leave for the exchange during the last
// micro-batch, so that is where the gradients become final.
void TrainStep::RunMicroBatches(TrainingState& state, const StepSamples& samples,
                                LayerUpdates* layers) {
  const int64_t seq_len = batch_.seq_len;
  // A rank without samples runs one masked row: zero gradients, and the same order of collectives.
  const bool none = samples.sequences == 0;
  const std::vector<int32_t> no_tokens(none ? seq_len : 0, 0);
  const int64_t count = std::max<int64_t>(samples.sequences, 1);
  GradientExchange& exchange = state.exchange();
  const auto ready = [&](int parameter) {
    if (exchange.travels()) event_->Record(stream_);
    exchange.MarkReady(parameter, *event_);
    if (layers) layers->Ready(parameter);
  };
  for (int64_t done = 0; done < count; done += batch_.micro_batch_sequences) {
    const int64_t rows = std::min(batch_.micro_batch_sequences, count - done);
    const bool last = done + rows == count;
    const bool replay = replayed_ && Replays(exchange.travels(), done == 0, last, layers);
    ParameterHooks hooks;
    if (!replay) {
      hooks.before_use = [&](int parameter) { exchange.WaitValues(parameter, stream_); };
      if (last) hooks.grad_ready = ready;
    }
    state.model().set_hooks(hooks);
    const MicroBatch batch =
        feeder_.Feed(none ? no_tokens.data() : samples.tokens + done * seq_len,
                     none ? nullptr : samples.targets + done * seq_len, rows, seq_len, stream_,
                     // What a teacher's loss is made of is computed on the host.
                     replay && teacher_ == nullptr ? LossScale(samples) : 0);
    RunMicroBatch(state.model(), batch, LossScale(samples), replay);
    if (replay && last) {
      for (auto p = static_cast<int>(state.parameters().size()); p-- > 0;) ready(p);
    }
    ReportProgress();
  }
  ParameterHooks hooks;  // of passes outside steps
  hooks.before_use = [&exchange, this](int p) { exchange.WaitValues(p, stream_); };
  state.model().set_hooks(hooks);
  exchange.EndBackward();
}

StepResult TrainStep::RunSequencesInTree(TrainingState& state, const StepSamples& samples) {
  const int64_t seq_len = batch_.seq_len;
  GradientExchange& exchange = state.exchange();
  ParameterHooks hooks;
  hooks.before_use = [&](int parameter) { exchange.WaitValues(parameter, stream_); };
  state.model().set_hooks(hooks);
  double losses[2] = {};  // of a sample, then of all: cross-entropy and divergence
  const int64_t loss_count = teacher_ ? 2 : 1;
  std::vector<TensorView> summed = samples.statistics;
  summed.push_back(state.buffer().grads());
  summed.push_back(TensorView(losses, DType::kF64, {loss_count}));
  SampleTree tree(backend_.device(), summed, batch_.sequences_per_step(), *tree_ranks_);
  for (int64_t i = 0; i < samples.sequences; ++i) {
    const MicroBatch batch = feeder_.Feed(samples.tokens + i * seq_len,
                                          samples.targets + i * seq_len, 1, seq_len, stream_);
    StepResult sums;
    RunMicroBatch(state.model(), batch, LossScale(samples), /*replay=*/false);
    TakeLosses(&sums);
    losses[0] = sums.loss_sum;
    losses[1] = sums.divergence_sum;
    tree.TakeSample(stream_);
    ReportProgress();
  }
  exchange.WaitAllValues(stream_);  // a rank without samples has not waited yet
  tree.Complete(stream_);
  const int64_t sent = SampleTree::NodesSent(batch_.sequences_per_step(), tree_ranks_->size());
  exchange.CountGradients(sent);
  exchange.CountControl(sent * loss_count * static_cast<int64_t>(sizeof(double)));
  if (tree_ranks_->rank() != 0) return {};
  return {.loss_sum = losses[0], .divergence_sum = teacher_ ? losses[1] : 0, .update = {}};
}

// Leaves the gradients on their way to the other ranks, and the losses on theirs to the host.
StepResult TrainStep::RunPasses(TrainingState& state, const StepSamples& samples) {
  if (tree_ranks_) {
    backend_.device().ZeroAsync(state.buffer().grads(), stream_);
    return RunSequencesInTree(state, samples);
  }
  state.model().StartGradients();
  RunMicroBatches(state, samples, nullptr);
  return {};
}

StepResult TrainStep::RunByLayers(TrainingState& state, const StepSamples& samples,
                                  const std::optional<Optimizer::UpdateArgs>& update) {
  state.model().StartGradients();
  LayerUpdates layers(state, update, stream_);
  RunMicroBatches(state, samples, &layers);
  StepResult result;
  result.update = layers.End();
  return result;
}

StepResult TrainStep::Gradients(TrainingState& state, const StepSamples& samples) {
  StepResult result;
  if (state.updates_by_layers()) {
    result = RunByLayers(state, samples, std::nullopt);
  } else {
    result = RunPasses(state, samples);
    state.exchange().WaitGrads(stream_);
    result.update.grad_norm = state.optimizer().GradNorm(stream_);
  }
  TakeLosses(&result);
  return result;
}

StepResult TrainStep::Run(TrainingState& state, const StepSamples& samples,
                          const OptimizerSpec& optimizer, double lr, int64_t updates) {
  StepResult result;
  if (state.updates_by_layers()) {
    result = RunByLayers(state, samples, Optimizer::UpdateArgs{optimizer, lr, updates});
  } else {
    result = RunPasses(state, samples);
    result.update = state.optimizer().Step(optimizer, lr, updates, stream_);
  }
  TakeLosses(&result);
  if (!result.update.skipped) state.model().ValuesChanged();
  return result;
}

}  // namespace filigree
