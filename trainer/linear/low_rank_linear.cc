// `low_rank`: W = alpha / r * B A, never formed: two thin products.
//
// Both factors start normal, such that the cells of W have the standard deviation of the dense
// weight. (B = 0, as in adapters, would make a network without other weights dead: no factor of
// attention's output and of the feed-forward would ever get a gradient.)
#include <cmath>

#include "trainer/linear/thin_linear.h"

namespace filigree {
namespace {

class LowRankLinear final : public ThinLinear {
 public:
  LowRankLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend)
      : ThinLinear(spec, FactorKind::kLowRank, sparsity.rank, sparsity.low_rank_scale(), backend) {}

  std::vector<Parameter> Parameters() const override {
    const double rank = static_cast<double>(factors_.rank());
    return NormalFactors(std::sqrt(spec_.init_std / (factors_.scale() * std::sqrt(rank))));
  }

  int64_t inner_width() const override { return factors_.padded_rank(); }

  void Forward(ConstTensorView x, TensorView y, TensorView inner, const ProductEpilogue& epilogue,
               Stream& stream) override {
    factors_.Shrink(x, inner, stream);
    factors_.Expand(inner, y, /*accumulate=*/false, bias_.values(), epilogue, stream);
  }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                const InputGrad& input_grad, Stream& stream) override {
    factors_.ExpandBackward(inner.values, dy, inner.grads, stream);
    bias_.Backward(dy, stream);
    factors_.ShrinkBackward(x, inner.grads, input_grad, stream);
  }
};

}  // namespace

const Parameterisation kLowRankParameterisation = {.name = "low_rank",
                                                   .summary = "a product of two thin factors",
                                                   .computes_stored = true,
                                                   .validate = &ValidateRank,
                                                   .draw_layout = &DrawNoLayout,
                                                   .create = &CreateThin<LowRankLinear>,
                                                   .factors = FactorKind::kLowRank,
                                                   .has_weight = false};

}  // namespace filigree
