// `dense`: every weight stored; the segment itself is what compute reads, rows and columns of
// padding included.
#include "trainer/linear/dense_product.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

class DenseLinear final : public Linear {
 public:
  DenseLinear(const LinearSpec& spec, Backend& backend)
      : spec_(spec), backend_(backend), bias_(spec, backend) {}

  std::vector<Parameter> Parameters() const override {
    Parameter weight =
        WeightParameter(spec_, SparseLayout::Dense(spec_.out, spec_.in, spec_.padded_in()));
    weight.padding_count = (spec_.padded_out() - spec_.out) * spec_.padded_in();
    std::vector<Parameter> parameters = {std::move(weight)};
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    const auto matrix = [&](TensorView segment) {
      return segment.data() ? segment.Reshape({spec_.padded_out(), spec_.padded_in()})
                            : TensorView();
    };
    product_ = {.weight = matrix(parameters[0].values),
                .grads = matrix(parameters[0].grads),
                .overwrite = parameters[0].overwrite};
    bias_.Bind(parameters);
  }

  void Materialize(Stream& stream) override {}
  bool pads() const override { return true; }

  void Forward(ConstTensorView x, TensorView y, TensorView, const ProductEpilogue& epilogue,
               Stream& stream) override {
    product_.Forward(backend_, x, y, bias_.values(), epilogue, stream);
  }

  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations&,
                const InputGrad& input_grad, Stream& stream) override {
    bias_.Backward(dy, stream);
    product_.Backward(backend_, x, dy, input_grad, stream);
  }

  std::optional<DensePart> dense_part() const override {
    return DensePart{&product_, bias_.bound()};
  }

  LinearFlops flops() const override {
    return {ProductFlops(spec_), ProductFlops(spec_), PaddedProductFlops(spec_)};
  }
  LinearMemory memory(DType compute_dtype) const override { return {}; }

 private:
  const LinearSpec spec_;
  Backend& backend_;
  LinearBias bias_;
  DenseProduct product_;
};

Status Validate(const LinearSpec& linear, const SparsitySpec& sparsity) {
  if (sparsity.sparsity == 0) return OkStatus();
  return InvalidInput(linear.name + ".weight: parameterisation dense with sparsity " +
                      std::to_string(sparsity.sparsity) +
                      "; leave sparsity at 0, or choose masked or block_sparse");
}

SparseLayout DrawLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  return SparseLayout::Dense(linear.out, linear.in);
}

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity,
                               SparseLayout layout, Backend& backend) {
  CHECK(layout.kind() == LayoutKind::kDense) << linear.name << ": " << NameOf(layout.kind());
  return std::make_unique<DenseLinear>(linear, backend);
}

}  // namespace

const Parameterisation kDenseParameterisation = {.name = "dense",
                                                 .summary = "every weight stored",
                                                 .computes_stored = false,
                                                 .validate = &Validate,
                                                 .draw_layout = &DrawLayout,
                                                 .create = &Create,
                                                 .dense = true};

}  // namespace filigree
