// `masked`: single weights stored, wherever the layout has them (SPDF, arXiv 2303.10464).
//
// State, gradients, exchange and checkpoints hold the nonzeros only; compute expands them to a
// dense copy, so this saves memory and traffic, not arithmetic. The weight's gradient is computed
// densely into a scratch that all linears share, then the stored cells are gathered from it: a
// select, so that nothing in a dead cell, not even a NaN, reaches the state.
#include "kernels/sparse/random_layout.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

class MaskedLinear final : public Linear {
 public:
  MaskedLinear(const LinearSpec& spec, SparseLayout layout, Backend& backend)
      : spec_(spec),
        backend_(backend),
        layout_(backend.PrepareLayout(layout)),
        bias_(spec, backend) {}

  std::vector<Parameter> Parameters() const override {
    std::vector<Parameter> parameters = {WeightParameter(spec_, layout_->layout())};
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    weight_ = parameters[0];
    bias_.Bind(parameters);
    const int64_t rows = spec_.padded_out(), cols = spec_.padded_in();
    const DType dtype = weight_.values.dtype();
    copy_ = backend_.device().Allocate(rows * cols * SizeOf(dtype), "compute_copies");
    dense_ = copy_.View(dtype, rows * cols).Reshape({rows, cols});
    if (scratch.data()) dense_grads_ = scratch.Range(0, rows * cols).Reshape({rows, cols});
  }

  void Materialize(Stream& stream) override {
    backend_.ScatterStored({.weight = layout_.get(),
                            .values = weight_.values,
                            .dense = Unpadded(dense_, spec_.out, spec_.in)},
                           stream);
    ZeroPadding(backend_.device(), dense_, spec_.out, spec_.in, stream);
  }
  bool pads() const override { return true; }

  void Forward(ConstTensorView x, TensorView y, TensorView, const ProductEpilogue& epilogue,
               Stream& stream) override {
    backend_.MatMul({.a = x,
                     .b = dense_,
                     .out = y,
                     .transpose_b = true,
                     .bias = bias_.values(),
                     .epilogue = epilogue},
                    stream);
  }

  bool overwrites_grads() const override { return true; }
  bool sums_input_grad() const override { return true; }
  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations&,
                const InputGrad& input_grad, Stream& stream) override {
    backend_.MatMul({.a = dy, .b = x, .out = dense_grads_, .transpose_a = true}, stream);
    backend_.GatherStored({.weight = layout_.get(),
                           .dense = Unpadded(dense_grads_, spec_.out, spec_.in),
                           .values = weight_.grads,
                           .accumulate = weight_.adds()},
                          stream);
    bias_.Backward(dy, stream);
    if (input_grad.dx.empty()) return;
    backend_.MatMul({.a = dy,
                     .b = dense_,
                     .out = input_grad.dx,
                     .accumulate = input_grad.accumulate,
                     .epilogue = input_grad.epilogue()},
                    stream);
  }

  LinearFlops flops() const override {
    return {ProductFlops(spec_), 2.0 * static_cast<double>(layout_->layout().nonzero_count()),
            PaddedProductFlops(spec_)};
  }
  LinearMemory memory(DType compute_dtype) const override {
    const int64_t copy =
        spec_.padded_out() * spec_.padded_in() * static_cast<int64_t>(SizeOf(compute_dtype));
    return {static_cast<int64_t>(layout_->bytes()), copy, copy};
  }

 private:
  const LinearSpec spec_;
  Backend& backend_;
  std::unique_ptr<PreparedLayout> layout_;
  LinearBias bias_;
  BoundParameter weight_;  // [stored]
  DeviceBuffer copy_;
  TensorView dense_, dense_grads_;  // [padded out, padded in]
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
    "masked", "single weights stored, computed densely", false, &Validate, &DrawLayout, &Create};

}  // namespace filigree
