#include "trainer/optimizer.h"

#include <algorithm>
#include <cmath>

namespace filigree {
namespace {

constexpr size_t kScaleOffset = sizeof(double);

}  // namespace

int64_t UpdatesSinceFreshMoments(const RunSpec& run, int phase, int64_t step) {
  int fresh = phase;
  while (fresh > 0 && run.phases[fresh].moments == Moments::kKeep) --fresh;
  return step - run.phases[fresh].first_step + 1;
}

Optimizer::Optimizer(const std::vector<Parameter>& parameters, FlatBuffer& buffer,
                     GradientExchange& exchange, Backend& backend)
    : parameters_(parameters),
      buffer_(buffer),
      exchange_(exchange),
      backend_(backend),
      scalars_(backend.device().Allocate(kScaleOffset + sizeof(float), "scratch")) {}

double Optimizer::GradNorm(Stream& stream) {
  TensorView sum = scalars_.View(DType::kF64, 1);
  backend_.device().ZeroAsync(sum, stream);
  for (const OwnedRange& range : buffer_.owned()) {
    TensorView grads = buffer_.Grads(range.segment).Range(range.segment_begin, range.count);
    backend_.SumOfSquares({.in = grads, .out = sum}, stream);
  }
  backend_.device().CopyAsync(TensorView(&host_sum_, DType::kF64, {1}), sum, stream);
  stream.Synchronize();
  return std::sqrt(exchange_.ReduceOverShards(host_sum_));
}

Optimizer::Result Optimizer::Step(const OptimizerSpec& spec, double lr, int64_t step,
                                  Stream& stream) {
  Result result;
  result.grad_norm = GradNorm(stream);
  result.skipped = !std::isfinite(result.grad_norm);
  if (result.skipped) return result;

  const bool clip = spec.clip_norm > 0 && result.grad_norm > spec.clip_norm;
  host_scale_ = clip ? static_cast<float>(spec.clip_norm / result.grad_norm) : 1.0f;
  TensorView scale = scalars_.View(DType::kF32, 1, kScaleOffset);
  backend_.device().CopyAsync(scale, ConstTensorView(&host_scale_, DType::kF32, {1}), stream);
  for (const OwnedRange& range : buffer_.owned()) {
    AdamWArgs args;
    args.values = buffer_.Values(range.segment).Range(range.segment_begin, range.count);
    args.master = buffer_.Master(range);
    args.grads = buffer_.Grads(range.segment).Range(range.segment_begin, range.count);
    args.m = buffer_.M(range);
    args.v = buffer_.V(range);
    args.scale = scale;
    args.lr = lr;
    args.beta1 = spec.beta1;
    args.beta2 = spec.beta2;
    args.epsilon = spec.epsilon;
    args.weight_decay = parameters_[range.segment].decay ? spec.weight_decay : 0;
    args.step = step;
    backend_.AdamW(args, stream);
  }
  return result;
}

}  // namespace filigree
