// `sparse_plus_low_rank`: W = alpha / r * B A + S, S stored at cells drawn once (SLTrain, arXiv
// 2406.02214), single ones or blocks.
//
// As published: S holds floor(density * cells) single weights, uniform without replacement; A and S
// start as U(+-1/sqrt(in)), B as zeros. Two forms compute the same function:
//   rebuilt   W is formed by one product, and S is added to it in place, at its cells alone, while
//             it is in the cache (a scatter first, with the product adding to it, moves three times
//             the bytes); then it is used as a dense weight. The dense gradient G lives in the
//             scratch for one linear: dV is gathered from it, dB = scale G A^T, dA = scale B^T G.
//             Without keep_rebuilt W is formed in the scratch too, for each use.
//   factored  y = (scale x A^T) B^T + x S^T, both products summed into one output, by one kernel
//             where the backend has it; needs S in blocks. Nothing dense is formed.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "kernels/sparse/random_layout.h"
#include "trainer/linear/formed_product.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/lost_start.h"
#include "trainer/linear/low_rank_factors.h"

namespace filigree {
namespace {

// What both forms share: S, the factors and the bias.
class SparsePlusLowRankLinear : public Linear {
 public:
  SparsePlusLowRankLinear(const LinearSpec& spec, const SparsitySpec& sparsity, SparseLayout layout,
                          Backend& backend)
      : spec_(spec),
        sparsity_(sparsity),
        backend_(backend),
        layout_(backend.PrepareLayout(layout)),
        factors_(spec, FactorKind::kLowRank, sparsity.rank, sparsity.low_rank_scale(), backend),
        bias_(spec, backend) {}

  std::vector<Parameter> Parameters() const override {
    Parameter weight = WeightParameter(spec_, layout_->layout());
    const FactorInit uniform = KaimingUniform(spec_.in);
    weight.init = uniform.kind;
    weight.init_std = uniform.std;
    std::vector<Parameter> parameters = {std::move(weight)};
    factors_.AppendParameters(uniform, {InitKind::kZeros}, &parameters);
    if (sparsity_.factor_start == FactorStart::kLost) StartAsLost(spec_, sparsity_, &parameters);
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    sparse_ = parameters[0];
    factors_.Bind(parameters.subspan(1, 2));
    bias_.Bind(parameters);
  }

 protected:
  double MethodFlops() const {
    return 2.0 * static_cast<double>(layout_->layout().nonzero_count() + factors_.count());
  }

  const LinearSpec spec_;
  const SparsitySpec sparsity_;
  Backend& backend_;
  std::unique_ptr<PreparedLayout> layout_;
  LowRankFactors factors_;
  LinearBias bias_;
  BoundParameter sparse_;  // S: [stored]
};

class RebuiltLinear final : public SparsePlusLowRankLinear, private FormedWeight {
 public:
  RebuiltLinear(const LinearSpec& spec, const SparsitySpec& sparsity, SparseLayout layout,
                Backend& backend)
      : SparsePlusLowRankLinear(spec, sparsity, std::move(layout), backend),
        product_({this}, backend) {}

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    SparsePlusLowRankLinear::Bind(parameters, scratch);
    product_.Bind(sparse_.values.dtype(), scratch);
  }

  void Materialize(Stream& stream) override { product_.Materialize(stream); }
  bool pads() const override { return true; }

  void Forward(ConstTensorView x, TensorView y, TensorView, const ProductEpilogue& epilogue,
               Stream& stream) override {
    product_.Forward(x, y, bias_.values(), epilogue, stream);
  }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations&,
                const InputGrad& input_grad, Stream& stream) override {
    bias_.Backward(dy, stream);
    product_.Backward(x, dy, input_grad, stream);
  }

  std::optional<FormedPart> formed_part() override { return FormedPart{this, bias_.bound()}; }

  // Of a step: three dense products a token, and per micro-batch one or two rebuilds and the two
  // products that project G onto the factors: 4 r mn operations, where the same gradients from the
  // activations would take 4 T r (m + n), more from T = mn / (m + n) tokens on, 1024 at width 2048.
  static double StepFlops(const LinearSpec& spec, const SparsitySpec& sparsity) {
    const double product = PaddedProductFlops(spec);
    const double thin_products = sparsity.keep_rebuilt ? 3 : 4;
    return 3.0 * static_cast<double>(sparsity.micro_batch_tokens) * product +
           thin_products * product * static_cast<double>(sparsity.rank);
  }

  LinearFlops flops() const override {
    // As many a token and pass, of the three that a step has.
    const double tokens = static_cast<double>(std::max<int64_t>(sparsity_.micro_batch_tokens, 1));
    return {ProductFlops(spec_), MethodFlops(), StepFlops(spec_, sparsity_) / (3.0 * tokens)};
  }
  LinearMemory memory(DType compute_dtype) const override {
    const int64_t dense =
        spec_.padded_out() * spec_.padded_in() * static_cast<int64_t>(SizeOf(compute_dtype));
    return {static_cast<int64_t>(layout_->bytes()), sparsity_.keep_rebuilt ? dense : 0, dense};
  }

 private:
  int64_t rows() const override { return spec_.padded_out(); }
  int64_t cols() const override { return spec_.padded_in(); }
  bool keeps() const override { return sparsity_.keep_rebuilt; }
  const LowRankFactors* factors() const override { return &factors_; }
  Stored stored() const override { return {layout_.get(), sparse_}; }

  FormedProduct product_;
};

class FactoredLinear final : public SparsePlusLowRankLinear {
 public:
  FactoredLinear(const LinearSpec& spec, const SparsitySpec& sparsity, SparseLayout layout,
                 Backend& backend)
      : SparsePlusLowRankLinear(spec.WithoutPadding(), sparsity, std::move(layout), backend) {}

  void Materialize(Stream&) override {}

  int64_t inner_width() const override { return factors_.padded_rank(); }

  void Forward(ConstTensorView x, TensorView y, TensorView inner, const ProductEpilogue& epilogue,
               Stream& stream) override {
    factors_.Shrink(x, inner, stream);
    const ConstTensorView b = factors_.b();
    backend_.Spmm({.weight = layout_.get(),
                   .values = sparse_.values,
                   .x = x,
                   .y = y,
                   .bias = bias_.values(),
                   .epilogue = epilogue,
                   .low_rank = {inner, {&b, 1}}},
                  stream);
  }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                const InputGrad& input_grad, Stream& stream) override {
    backend_.Sddmm({.weight = layout_.get(),
                    .dy = dy,
                    .x = x,
                    .dvalues = sparse_.grads,
                    .accumulate = sparse_.adds(),
                    .dy_sums = bias_.grads(),
                    .accumulate_sums = bias_.adds()},
                   stream);
    factors_.ExpandBackward(inner.values, dy, inner.grads, stream);
    factors_.ShrinkBackward(x, inner.grads, {}, stream);
    if (input_grad.dx.empty()) return;
    const ConstTensorView a = factors_.a();
    backend_.SpmmTransposed({.weight = layout_.get(),
                             .values = sparse_.values,
                             .dy = dy,
                             .dx = input_grad.dx,
                             .accumulate = input_grad.accumulate,
                             .epilogue = input_grad.epilogue(),
                             .low_rank = {inner.grads, {&a, 1}}},
                            stream);
  }

  std::optional<BlockedProduct> blocked_product() const override {
    return BlockedProduct{layout_.get(), sparse_, bias_.bound(), &factors_};
  }

  static double StepFlops(const LinearSpec& spec, const SparsitySpec& sparsity,
                          const SparseLayout& layout) {
    const int64_t values = layout.stored_count() + sparsity.rank * (spec.out + spec.in);
    return 6.0 * static_cast<double>(sparsity.micro_batch_tokens) * static_cast<double>(values);
  }

  LinearFlops flops() const override {
    return {ProductFlops(spec_), MethodFlops(),
            2.0 * static_cast<double>(layout_->layout().stored_count() + factors_.padded_count())};
  }
  LinearMemory memory(DType) const override {
    return {.layout_bytes = static_cast<int64_t>(layout_->bytes())};
  }
};

// The reference's int(density * cells). 1 - 0.97 is a little over 0.03, 1 - 0.9 a little under 0.1:
// what is whole but for rounding counts as whole.
int64_t StoredCells(const LinearSpec& linear, const SparsitySpec& sparsity) {
  const double cells = static_cast<double>(linear.out * linear.in);
  return static_cast<int64_t>((1.0 - sparsity.sparsity) * cells * (1.0 + 1e-12));
}

// LOST chooses the input channels that S keeps.
Status ValidateLost(const LinearSpec& linear, const SparsitySpec& sparsity) {
  if (sparsity.sparse_part == SparsePart::kBlocks || sparsity.rule != "static_random") {
    return InvalidInput(linear.name +
                        ".weight: initialisation LOST chooses the channels of the sparse part "
                        "itself; leave sparse_part and rule out, or take initialisation SLTRAIN");
  }
  if (LostChannels(linear, sparsity) >= 1) return OkStatus();
  return InvalidInput(linear.name + ".weight: sparsity " + std::to_string(sparsity.sparsity) +
                      " leaves none of its " + std::to_string(linear.in) +
                      " input channels; lower it, or take parameterisation low_rank");
}

Status Validate(const LinearSpec& linear, const SparsitySpec& sparsity) {
  RETURN_IF_ERROR(ValidateRank(linear, sparsity));
  if (sparsity.factor_start == FactorStart::kLost) {
    RETURN_IF_ERROR(ValidateLost(linear, sparsity));
  }
  if (sparsity.sparse_part == SparsePart::kBlocks) {
    return kBlockSparseParameterisation.validate(linear, sparsity);
  }
  if (StoredCells(linear, sparsity) < 1) {
    return InvalidInput(linear.name + ".weight: sparsity " + std::to_string(sparsity.sparsity) +
                        " leaves none of its cells; lower it, or take parameterisation low_rank");
  }
  if (sparsity.compute != LowRankCompute::kFactored) return OkStatus();
  return InvalidInput(linear.name +
                      ": compute FACTORED multiplies the sparse part in blocks; set sparse_part: "
                      "BLOCKS, or compute: REBUILD");
}

SparseLayout DrawLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  if (sparsity.factor_start == FactorStart::kLost) return DrawLostLayout(linear, sparsity, seed);
  if (sparsity.sparse_part == SparsePart::kBlocks) {
    return kBlockSparseParameterisation.draw_layout(linear, sparsity, seed);
  }
  return RandomUnstructuredCells(linear.out, linear.in, StoredCells(linear, sparsity), seed,
                                 linear.name + ".weight");
}

// AUTO takes the form that costs less for this weight and micro-batch: floating-point operations,
// those of blocks at the backend's price.
bool Factored(const LinearSpec& linear, const SparsitySpec& sparsity, const SparseLayout& layout,
              const Backend& backend) {
  if (layout.kind() != LayoutKind::kBlocked) return false;
  if (sparsity.compute != LowRankCompute::kAuto) {
    return sparsity.compute == LowRankCompute::kFactored;
  }
  return FactoredLinear::StepFlops(linear, sparsity, layout) * backend.BlockedFlopCost(layout) <
         RebuiltLinear::StepFlops(linear, sparsity);
}

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity,
                               SparseLayout layout, Backend& backend) {
  if (Factored(linear, sparsity, layout, backend)) {
    return std::make_unique<FactoredLinear>(linear, sparsity, std::move(layout), backend);
  }
  return std::make_unique<RebuiltLinear>(linear, sparsity, std::move(layout), backend);
}

}  // namespace

const Parameterisation kSparsePlusLowRankParameterisation = {
    "sparse_plus_low_rank",
    "thin factors plus a sparse part (SLTrain)",
    /*computes_stored=*/false,
    &Validate,
    &DrawLayout,
    &Create,
    FactorKind::kLowRank,
    /*has_weight=*/true,
    StoredUnits::kSparsePart};

}  // namespace filigree
