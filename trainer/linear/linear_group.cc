#include "trainer/linear/linear.h"

namespace filigree {

LinearGroup::LinearGroup(std::vector<std::unique_ptr<Linear>> parts, std::vector<int64_t> widths)
    : parts_(std::move(parts)), offsets_{0} {
  CHECK_EQ(parts_.size(), widths.size());
  for (int64_t width : widths) offsets_.push_back(offsets_.back() + width);
}

void LinearGroup::Materialize(Stream& stream) {
  for (const auto& part : parts_) part->Materialize(stream);
}

void LinearGroup::Forward(ConstTensorView x, TensorView y, const ProductEpilogue& epilogue,
                          Stream& stream) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const int part = static_cast<int>(i);
    parts_[i]->Forward(x, Part(y, part),
                       {.residual = Part(epilogue.residual, part),
                        .pre_activation = Part(epilogue.pre_activation, part)},
                       stream);
  }
}

void LinearGroup::Backward(ConstTensorView x, ConstTensorView dy, const InputGrad& input_grad,
                           Stream& stream) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    // The derivative of the activation multiplies the sum over the parts.
    InputGrad part = input_grad;
    part.accumulate |= i > 0;
    if (i + 1 < parts_.size()) part.gelu_input = {};
    parts_[i]->Backward(x, Part(dy, static_cast<int>(i)), part, stream);
  }
}

}  // namespace filigree
