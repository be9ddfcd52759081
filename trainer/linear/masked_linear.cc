// `masked`: single weights stored, wherever the layout has them (SPDF, arXiv 2303.10464).
//
// State, gradients, exchange and checkpoints hold the nonzeros only; compute expands them to a
// dense copy, so this saves memory and traffic, not arithmetic. The weight's gradient is computed
// densely into a scratch that all linears share, then the stored cells are gathered from it: a
// select, so that nothing in a dead cell, not even a NaN, reaches the state.
#include "kernels/sparse/random_layout.h"
#include "trainer/linear/formed_product.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

class MaskedLinear final : public Linear, private FormedWeight {
 public:
  MaskedLinear(const LinearSpec& spec, SparseLayout layout, Backend& backend)
      : spec_(spec),
        layout_(backend.PrepareLayout(layout)),
        two_four_(TwoFourOf(layout)),
        compressed_bytes_(backend.TwoFourBytes(spec.padded_out(), spec.padded_in(), two_four_)),
        bias_(spec, backend),
        product_({this}, backend) {}

  std::vector<Parameter> Parameters() const override {
    std::vector<Parameter> parameters = {WeightParameter(spec_, layout_->layout())};
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    weight_ = parameters[0];
    bias_.Bind(parameters);
    product_.Bind(weight_.values.dtype(), scratch);
  }

  void Materialize(Stream& stream) override { product_.Materialize(stream); }
  bool pads() const override { return true; }

  void Forward(ConstTensorView x, TensorView y, TensorView, const ProductEpilogue& epilogue,
               Stream& stream) override {
    product_.Forward(x, y, bias_.values(), epilogue, stream);
  }

  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations&,
                const InputGrad& input_grad, Stream& stream) override {
    bias_.Backward(dy, stream);
    product_.Backward(x, dy, input_grad, stream);
  }

  std::optional<FormedPart> formed_part() override { return FormedPart{this, bias_.bound()}; }

  LinearFlops flops() const override {
    return {ProductFlops(spec_), 2.0 * static_cast<double>(layout_->layout().nonzero_count()),
            PaddedProductFlops(spec_)};
  }
  LinearMemory memory(DType compute_dtype) const override {
    const int64_t copy =
        spec_.padded_out() * spec_.padded_in() * static_cast<int64_t>(SizeOf(compute_dtype));
    return {static_cast<int64_t>(layout_->bytes()), copy + compressed_bytes_, copy};
  }

 private:
  int64_t rows() const override { return spec_.padded_out(); }
  int64_t cols() const override { return spec_.padded_in(); }
  bool keeps() const override { return true; }
  Stored stored() const override { return {layout_.get(), weight_}; }
  TwoFourKind two_four() const override { return two_four_; }

  const LinearSpec spec_;
  std::unique_ptr<PreparedLayout> layout_;
  const TwoFourKind two_four_;
  const int64_t compressed_bytes_;
  LinearBias bias_;
  BoundParameter weight_;  // [stored]
  FormedProduct product_;
};

Status Validate(const LinearSpec& linear, const SparsitySpec& sparsity) {
  const double stored = (1.0 - sparsity.sparsity) * static_cast<double>(linear.out * linear.in);
  if (sparsity.sparsity >= 0 && stored >= 0.5) return OkStatus();
  return InvalidInput(linear.name + ".weight: sparsity " + std::to_string(sparsity.sparsity) +
                      " leaves nothing of " + std::to_string(linear.out) + " x " +
                      std::to_string(linear.in) + "; give a value in [0, 1) that keeps a weight");
}

SparseLayout DrawLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  return RandomUnstructured(linear.out, linear.in, 1.0 - sparsity.sparsity, seed,
                            linear.name + ".weight");
}

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity,
                               SparseLayout layout, Backend& backend) {
  CHECK(layout.kind() == LayoutKind::kUnstructured) << linear.name << ": " << NameOf(layout.kind());
  return MakeMaskedLinear(linear, std::move(layout), backend);
}

}  // namespace

std::unique_ptr<Linear> MakeMaskedLinear(const LinearSpec& linear, SparseLayout layout,
                                         Backend& backend) {
  return std::make_unique<MaskedLinear>(linear, std::move(layout), backend);
}

const Parameterisation kMaskedParameterisation = {
    .name = "masked",
    .summary = "single weights stored, computed densely",
    .computes_stored = false,
    .validate = &Validate,
    .draw_layout = &DrawLayout,
    .create = &Create,
    .movable = true};

}  // namespace filigree
