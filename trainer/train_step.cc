#include "trainer/train_step.h"

#include <algorithm>
#include <vector>

#include "kernels/base/progress.h"
#include "trainer/sample_tree.h"

namespace filigree {
namespace {

// A step whose targets are all masked has zero gradients, whatever they are divided by.
double LossScale(const StepSamples& samples) { return 1.0 / std::max(samples.valid_tokens, 1.0); }

}  // namespace

TrainStep::TrainStep(const BatchSpec& batch, Backend& backend, Stream& stream)
    : batch_(batch),
      backend_(backend),
      stream_(stream),
      event_(backend.device().NewEvent()),
      feeder_(backend.device(), batch.micro_batch_sequences, batch.seq_len) {}

// Forward and backward of this rank's samples. Parameters leave for the exchange during the last
// micro-batch, so that is where the gradients become final.
double TrainStep::RunMicroBatches(TrainingState& state, const StepSamples& samples,
                                  LayerUpdates* layers) {
  const int64_t seq_len = batch_.seq_len;
  // A rank without samples runs one masked row: zero gradients, and the same order of collectives.
  const std::vector<int32_t> no_tokens(samples.sequences == 0 ? seq_len : 0, 0);
  const int64_t count = std::max<int64_t>(samples.sequences, 1);
  GradientExchange& exchange = state.exchange();
  ParameterHooks hooks;
  hooks.before_use = [&](int parameter) { exchange.WaitValues(parameter, stream_); };
  double loss_sum = 0;
  for (int64_t done = 0; done < count; done += batch_.micro_batch_sequences) {
    const int64_t rows = std::min(batch_.micro_batch_sequences, count - done);
    if (done + rows == count) {
      hooks.grad_ready = [&](int parameter) {
        event_->Record(stream_);
        exchange.MarkReady(parameter, *event_);
        if (layers) layers->Ready(parameter);
      };
    }
    state.model().set_hooks(hooks);
    const bool none = samples.sequences == 0;
    const MicroBatch batch =
        feeder_.Feed(none ? no_tokens.data() : samples.tokens + done * seq_len,
                     none ? nullptr : samples.targets + done * seq_len, rows, seq_len, stream_);
    state.model().ForwardBackward(batch, LossScale(samples), feeder_.Losses(rows, seq_len),
                                  stream_);
    loss_sum += feeder_.SumLosses(rows * seq_len, stream_);
    ReportProgress();
  }
  hooks.grad_ready = nullptr;
  state.model().set_hooks(hooks);
  exchange.EndBackward();
  return loss_sum;
}

double TrainStep::RunSequencesInTree(TrainingState& state, const StepSamples& samples) {
  const int64_t seq_len = batch_.seq_len;
  GradientExchange& exchange = state.exchange();
  ParameterHooks hooks;
  hooks.before_use = [&](int parameter) { exchange.WaitValues(parameter, stream_); };
  state.model().set_hooks(hooks);
  double loss_sum = 0;
  std::vector<TensorView> summed = samples.statistics;
  summed.push_back(state.buffer().grads());
  summed.push_back(TensorView(&loss_sum, DType::kF64, {1}));
  SampleTree tree(backend_.device(), summed, batch_.sequences_per_step(), *tree_ranks_);
  for (int64_t i = 0; i < samples.sequences; ++i) {
    const MicroBatch batch = feeder_.Feed(samples.tokens + i * seq_len,
                                          samples.targets + i * seq_len, 1, seq_len, stream_);
    state.model().ForwardBackward(batch, LossScale(samples), feeder_.Losses(1, seq_len), stream_);
    loss_sum = feeder_.SumLosses(seq_len, stream_);
    tree.TakeSample(stream_);
    ReportProgress();
  }
  exchange.WaitAllValues(stream_);  // a rank without samples has not waited yet
  tree.Complete(stream_);
  const int64_t sent = SampleTree::NodesSent(batch_.sequences_per_step(), tree_ranks_->size());
  exchange.CountGradients(sent);
  exchange.CountControl(sent * static_cast<int64_t>(sizeof(loss_sum)));
  return tree_ranks_->rank() == 0 ? loss_sum : 0;
}

// Leaves the gradients on their way to the other ranks.
double TrainStep::RunPasses(TrainingState& state, const StepSamples& samples) {
  if (tree_ranks_) {
    backend_.device().ZeroAsync(state.buffer().grads(), stream_);
    return RunSequencesInTree(state, samples);
  }
  state.model().StartGradients();
  return RunMicroBatches(state, samples, nullptr);
}

StepResult TrainStep::RunByLayers(TrainingState& state, const StepSamples& samples,
                                  const std::optional<Optimizer::UpdateArgs>& update) {
  state.model().StartGradients();
  LayerUpdates layers(state, update, stream_);
  StepResult result;
  result.loss_sum = RunMicroBatches(state, samples, &layers);
  result.update = layers.End();
  return result;
}

StepResult TrainStep::Gradients(TrainingState& state, const StepSamples& samples) {
  if (state.updates_by_layers()) return RunByLayers(state, samples, std::nullopt);
  StepResult result;
  result.loss_sum = RunPasses(state, samples);
  state.exchange().WaitGrads(stream_);
  result.update.grad_norm = state.optimizer().GradNorm(stream_);
  return result;
}

StepResult TrainStep::Run(TrainingState& state, const StepSamples& samples,
                          const OptimizerSpec& optimizer, double lr, int64_t updates) {
  StepResult result;
  if (state.updates_by_layers()) {
    result = RunByLayers(state, samples, Optimizer::UpdateArgs{optimizer, lr, updates});
  } else {
    result.loss_sum = RunPasses(state, samples);
    result.update = state.optimizer().Step(optimizer, lr, updates, stream_);
  }
  if (!result.update.skipped) state.model().ValuesChanged();
  return result;
}

}  // namespace filigree
