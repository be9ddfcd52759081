#include "trainer/linear/formed_product.h"

#include <algorithm>
#include <utility>

#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

// Without the weight's padding.
template <typename View>
View Cells(View rows, const FormedWeight::Stored& stored) {
  return Unpadded(rows, stored.layout->layout().out(), stored.layout->layout().in());
}

}  // namespace

FormedProduct::FormedProduct(std::vector<FormedWeight*> weights, Backend& backend)
    : weights_(std::move(weights)), backend_(backend) {
  CHECK(!weights_.empty());
  cols_ = weights_.front()->cols();
  for (const FormedWeight* weight : weights_) {
    CHECK_EQ(weight->cols(), cols_);
    CHECK(weight->keeps() == weights_.front()->keeps());
    CHECK((weight->factors() == nullptr) == (weights_.front()->factors() == nullptr));
    rows_ += weight->rows();
  }
}

void FormedProduct::Bind(DType dtype, TensorView scratch) {
  dtype_ = dtype;
  gradient_ = {};
  if (scratch.data()) gradient_ = scratch.Range(0, size()).Reshape({rows_, cols_});
  kept_ = weights_.front()->keeps() || !scratch.data();
  if (!kept_) weight_ = gradient_;
  factors_.reset();
  if (weights_.front()->factors() == nullptr) return;
  std::vector<const LowRankFactors*> factors;
  for (const FormedWeight* weight : weights_) factors.push_back(weight->factors());
  factors_ = std::make_unique<LowRankGroup>(factors, backend_);
}

void FormedProduct::Materialize(Stream& stream) {
  if (!kept_) return;
  if (copy_.data() == nullptr) {
    copy_ = backend_.device().Allocate(size() * SizeOf(dtype_), "compute_copies");
    weight_ = copy_.View(dtype_, size()).Reshape({rows_, cols_});
    TwoFourKind kind = weights_.front()->two_four();
    for (const FormedWeight* weight : weights_) kind = std::min(kind, weight->two_four());
    two_four_ = backend_.PrepareTwoFour(weight_, kind);
  }
  Form(stream);
  if (two_four_) two_four_->Update(stream);
}

void FormedProduct::Multiply(const MatMulArgs& args, Stream& stream) {
  if (two_four_) return two_four_->MatMul(args, stream);
  backend_.MatMul(args, stream);
}

void FormedProduct::Form(Stream& stream) {
  if (factors_) factors_->Form(weight_, stream);
  std::vector<ScatterStoredArgs> parts;
  ForEachWeight(weight_, [&](const FormedWeight::Stored& stored, TensorView rows) {
    parts.push_back({.weight = stored.layout,
                     .values = stored.parameter.values,
                     .dense = Cells(rows, stored),
                     .accumulate = factors_ != nullptr});
  });
  backend_.ScatterGroup(parts, stream);
  if (factors_) return;  // their product has zero padding
  ForEachWeight(weight_, [&](const FormedWeight::Stored& stored, TensorView rows) {
    const SparseLayout& layout = stored.layout->layout();
    ZeroPadding(backend_.device(), rows, layout.out(), layout.in(), stream);
  });
}

void FormedProduct::AddGradients(Stream& stream) {
  std::vector<GatherStoredArgs> parts;
  ForEachWeight(ConstTensorView(gradient_),
                [&](const FormedWeight::Stored& stored, ConstTensorView rows) {
                  parts.push_back({.weight = stored.layout,
                                   .dense = Cells(rows, stored),
                                   .values = stored.parameter.grads,
                                   .accumulate = stored.parameter.adds()});
                });
  backend_.GatherGroup(parts, stream);
  if (factors_) factors_->AddGradients(gradient_, stream);
}

void FormedProduct::Forward(ConstTensorView x, TensorView y, ConstTensorView bias,
                            const ProductEpilogue& epilogue, Stream& stream) {
  if (!kept_) Form(stream);
  Multiply(
      {.a = x, .b = weight_, .out = y, .transpose_b = true, .bias = bias, .epilogue = epilogue},
      stream);
}

void FormedProduct::Backward(ConstTensorView x, ConstTensorView dy, const InputGrad& input_grad,
                             Stream& stream) {
  backend_.MatMul({.a = dy, .b = x, .out = gradient_, .transpose_a = true}, stream);
  AddGradients(stream);
  if (input_grad.dx.empty()) return;
  if (!kept_) Form(stream);  // over the gradient, which is spent
  Multiply({.a = dy,
            .b = weight_,
            .out = input_grad.dx,
            .accumulate = input_grad.accumulate,
            .epilogue = input_grad.epilogue()},
           stream);
}

}  // namespace filigree
