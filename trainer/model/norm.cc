#include "trainer/model/norm.h"

#include "trainer/model/decoder_spec.h"

namespace filigree {
namespace {

Parameter Vector(const std::string& name, int64_t width, InitKind init) {
  Parameter parameter;
  parameter.name = name;
  parameter.shape = {width};
  parameter.layout = SparseLayout::Dense(1, width);
  parameter.init = init;
  return parameter;
}

}  // namespace

Norm::Norm(const ModelSpec& model, const std::string& name, Backend& backend, ParameterTable& table)
    : kind_(TraitsOf(model.family).norm),
      epsilon_(model.norm_epsilon),
      divisor_(model.norm_divisor()),
      backend_(backend),
      table_(table) {
  gain_ = table.Add(Vector(name + ".weight", model.width, InitKind::kOnes));
  if (kind_ == NormKind::kLayer) {
    CHECK_EQ(divisor_, model.width) << "LayerNorm's mean is over the channels that are there";
    bias_ = table.Add(Vector(name + ".bias", model.width, InitKind::kZeros));
  }
}

NormStatistics Norm::LayOut(ActivationArena& arena, int64_t tokens) const {
  NormStatistics statistics;
  statistics.rstd = arena.Statistic(tokens);
  if (kind_ == NormKind::kLayer) statistics.mean = arena.Statistic(tokens);
  return statistics;
}

void Norm::Forward(ConstTensorView x, TensorView y, const NormStatistics& statistics,
                   Stream& stream) {
  table_.Use(gain_);
  const ConstTensorView gain = table_.bound(gain_).values;
  if (kind_ == NormKind::kRms) {
    backend_.RmsNorm({.x = x,
                      .gain = gain,
                      .y = y,
                      .rstd = statistics.rstd,
                      .epsilon = epsilon_,
                      .divisor = divisor_},
                     stream);
    return;
  }
  table_.Use(bias_);
  backend_.LayerNorm({.x = x,
                      .gain = gain,
                      .bias = table_.bound(bias_).values,
                      .y = y,
                      .mean = statistics.mean,
                      .rstd = statistics.rstd,
                      .epsilon = epsilon_},
                     stream);
}

void Norm::Backward(ConstTensorView x, ConstTensorView dy, TensorView dx,
                    const NormStatistics& statistics, const BoundParameter& bias_of_x,
                    Stream& stream) {
  const BoundParameter& gain = table_.bound(gain_);
  if (kind_ == NormKind::kRms) {
    backend_.RmsNormBackward({.x = x,
                              .dy = dy,
                              .gain = gain.values,
                              .rstd = statistics.rstd,
                              .dx = dx,
                              .dgain = gain.grads,
                              .accumulate = gain.adds(),
                              .dx_sums = bias_of_x.grads,
                              .accumulate_dx_sums = bias_of_x.adds(),
                              .divisor = divisor_},
                             stream);
  } else {
    backend_.LayerNormBackward({.x = x,
                                .dy = dy,
                                .gain = gain.values,
                                .mean = statistics.mean,
                                .rstd = statistics.rstd,
                                .dx = dx,
                                .dgain = gain.grads,
                                .dbias = table_.bound(bias_).grads,
                                .accumulate = gain.adds(),
                                .dx_sums = bias_of_x.grads,
                                .accumulate_dx_sums = bias_of_x.adds()},
                               stream);
    table_.GradReady(bias_);
  }
  table_.GradReady(gain_);
}

}  // namespace filigree
