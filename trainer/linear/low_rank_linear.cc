// `low_rank`: W = alpha / r * B A, never formed: two thin products.
//
// Both factors start normal, such that the cells of W have the standard deviation of the dense
// weight. (B = 0, as in adapters, would make a network without other weights dead: no factor of
// attention's output and of the feed-forward would ever get a gradient.)
#include <cmath>

#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/low_rank_factors.h"

namespace filigree {
namespace {

class LowRankLinear final : public Linear {
 public:
  LowRankLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend)
      : spec_(spec),
        scale_(sparsity.low_rank_scale()),
        factors_(spec, FactorKind::kLowRank, sparsity.rank, scale_, backend),
        bias_(spec, backend) {}

  std::vector<Parameter> Parameters() const override {
    const double rank = static_cast<double>(factors_.rank());
    const FactorInit init = {InitKind::kNormal,
                             std::sqrt(spec_.init_std / (scale_ * std::sqrt(rank)))};
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

  LinearFlops flops() const override {
    return {ProductFlops(spec_), 2.0 * static_cast<double>(factors_.count()),
            2.0 * static_cast<double>(factors_.padded_count())};
  }
  LinearMemory memory(DType) const override { return {}; }

 private:
  const LinearSpec spec_;
  const double scale_;
  LowRankFactors factors_;
  LinearBias bias_;
};

SparseLayout DrawLayout(const LinearSpec&, const SparsitySpec&, uint64_t) { return {}; }

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity, SparseLayout,
                               Backend& backend) {
  return std::make_unique<LowRankLinear>(linear, sparsity, backend);
}

}  // namespace

const Parameterisation kLowRankParameterisation = {"low_rank",
                                                   "a product of two thin factors",
                                                   true,
                                                   &ValidateRank,
                                                   &DrawLayout,
                                                   &Create,
                                                   FactorKind::kLowRank,
                                                   /*has_weight=*/false};

}  // namespace filigree
