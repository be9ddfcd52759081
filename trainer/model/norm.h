// RMSNorm or LayerNorm over the model's width, with its parameters.
#pragma once

#include <string>

#include "trainer/model/activation_arena.h"
#include "trainer/model/parameter_table.h"

namespace filigree {

enum class NormKind { kRms, kLayer };

// What forward keeps for backward: per-token statistics. `mean` is empty for RMSNorm.
struct NormStatistics {
  TensorView mean, rstd;  // [T]
};

class Norm {
 public:
  // Adds NAME.weight (and NAME.bias for LayerNorm). RMSNorm divides by the model's norm_divisor().
  Norm(const ModelSpec& model, const std::string& name, Backend& backend, ParameterTable& table);

  NormStatistics LayOut(ActivationArena& arena, int64_t tokens) const;
  // y [T, D] from x [T, D].
  void Forward(ConstTensorView x, TensorView y, const NormStatistics& statistics, Stream& stream);
  // Adds to dx and makes the parameters' gradients, which are then final for the micro-batch, as
  // well as those of a bias that was added to x, if one is given: the sums of dx over rows.
  void Backward(ConstTensorView x, ConstTensorView dy, TensorView dx,
                const NormStatistics& statistics, const BoundParameter& bias_of_x, Stream& stream);

 private:
  NormKind kind_;
  double epsilon_;
  int64_t divisor_;
  Backend& backend_;
  ParameterTable& table_;
  int gain_ = -1, bias_ = -1;
};

}  // namespace filigree
