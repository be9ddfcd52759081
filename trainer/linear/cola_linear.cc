// `cola`: y = B silu(A x) + bias (CoLA, arXiv 2502.10940). No weight expresses it, so it is not
// merged for export.
//
// Each factor starts as N(0, 1) * (in + out)^(-1/4) * r^(-1/4), as in the authors' code. The
// activation functions of the model stay where they are (their setting for 60M and 130M); with model {
// gate_activation: IDENTITY } there is none but these (350M and up).
#include <cmath>

#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/low_rank_factors.h"

namespace filigree {
namespace {

class ColaLinear final : public Linear {
 public:
  ColaLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend)
      : spec_(spec),
        backend_(backend),
        factors_(spec, FactorKind::kNonlinear, sparsity.rank, /*scale=*/1, backend),
        bias_(spec, backend) {}

  std::vector<Parameter> Parameters() const override {
    const FactorInit init = {
        InitKind::kNormal,
        std::pow(static_cast<double>((spec_.in + spec_.out) * factors_.rank()), -0.25)};
    std::vector<Parameter> parameters;
    factors_.AppendParameters(init, init, &parameters);
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  void Bind(std::span<const BoundParameter> parameters, TensorView) override {
    factors_.Bind(parameters.first(2));
    bias_.Bind(parameters);
  }

  void Materialize(Stream&) override {}
  bool overwrites_grads() const override { return true; }
  bool sums_input_grad() const override { return true; }
  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }
  bool pads() const override { return true; }

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

  LinearFlops flops() const override {
    return {ProductFlops(spec_), 2.0 * static_cast<double>(factors_.count()),
            2.0 * static_cast<double>(factors_.padded_count())};
  }
  LinearMemory memory(DType) const override { return {}; }

 private:
  template <typename View>
  View Before(View inner) const {
    return inner.Cols(0, factors_.padded_rank());
  }
  template <typename View>
  View After(View inner) const {
    return inner.Cols(factors_.padded_rank(), factors_.padded_rank());
  }

  const LinearSpec spec_;
  Backend& backend_;
  LowRankFactors factors_;
  LinearBias bias_;
};

SparseLayout DrawLayout(const LinearSpec&, const SparsitySpec&, uint64_t) { return {}; }

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity, SparseLayout,
                               Backend& backend) {
  return std::make_unique<ColaLinear>(linear, sparsity, backend);
}

}  // namespace

const Parameterisation kColaParameterisation = {"cola",
                                                "two thin factors with silu between them",
                                                /*computes_stored=*/true,
                                                &ValidateRank,
                                                &DrawLayout,
                                                &Create,
                                                FactorKind::kNonlinear,
                                                /*has_weight=*/false};

}  // namespace filigree
