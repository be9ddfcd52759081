// `cola`: y = B silu(A x) + bias (CoLA, arXiv 2502.10940). No weight expresses it, so it is not
// merged for export.
//
// Each factor starts as N(0, 1) * (in + out)^(-1/4) * r^(-1/4), as in the authors' code. The
// activation functions of the model stay where they are (their setting for 60M and 130M); with
// model { gate_activation: IDENTITY } there is none but these (350M and up).
#include <cmath>

#include "trainer/linear/thin_linear.h"

namespace filigree {
namespace {

class ColaLinear final : public ThinLinear {
 public:
  ColaLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend)
      : ThinLinear(spec, FactorKind::kNonlinear, sparsity.rank, /*scale=*/1, backend),
        backend_(backend) {}

  std::vector<Parameter> Parameters() const override {
    return NormalFactors(
        std::pow(static_cast<double>((spec_.in + spec_.out) * factors_.rank()), -0.25));
  }

  // Before and after the activation, side by side.
  int64_t inner_width() const override { return 2 * factors_.padded_rank(); }

  void Forward(ConstTensorView x, TensorView y, TensorView inner, const ProductEpilogue& epilogue,
               Stream& stream) override {
    factors_.Shrink(x, Before(inner), stream);
    backend_.SwiGlu({.gate = Before(inner), .y = After(inner)}, stream);
    factors_.Expand(After(inner), y, /*accumulate=*/false, bias_.values(), epilogue, stream);
  }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                const InputGrad& input_grad, Stream& stream) override {
    factors_.ExpandBackward(After(inner.values), dy, After(inner.grads), stream);
    bias_.Backward(dy, stream);
    backend_.SwiGluBackward(
        {.gate = Before(inner.values), .dy = After(inner.grads), .dgate = Before(inner.grads)},
        stream);
    factors_.ShrinkBackward(x, Before(inner.grads), input_grad, stream);
  }

 private:
  template <typename View>
  View Before(View inner) const {
    return inner.Cols(0, factors_.padded_rank());
  }
  template <typename View>
  View After(View inner) const {
    return inner.Cols(factors_.padded_rank(), factors_.padded_rank());
  }

  Backend& backend_;
};

}  // namespace

const Parameterisation kColaParameterisation = {
    .name = "cola",
    .summary = "two thin factors with silu between them",
    .computes_stored = true,
    .validate = &ValidateRank,
    .draw_layout = &DrawNoLayout,
    .create = &CreateThin<ColaLinear>,
    .factors = FactorKind::kNonlinear,
    .has_weight = false};

}  // namespace filigree
