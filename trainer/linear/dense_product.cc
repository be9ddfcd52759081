#include "trainer/linear/dense_product.h"

namespace filigree {

void DenseProduct::Forward(Backend& backend, ConstTensorView x, TensorView y, ConstTensorView bias,
                           const ProductEpilogue& epilogue, Stream& stream) const {
  backend.MatMul(
      {.a = x, .b = weight, .out = y, .transpose_b = true, .bias = bias, .epilogue = epilogue},
      stream);
}

void DenseProduct::Backward(Backend& backend, ConstTensorView x, ConstTensorView dy,
                            const InputGrad& input_grad, Stream& stream) const {
  const bool adds = overwrite == nullptr || !*overwrite;
  backend.MatMul({.a = dy, .b = x, .out = grads, .transpose_a = true, .accumulate = adds}, stream);
  if (input_grad.dx.empty()) return;
  backend.MatMul({.a = dy,
                  .b = weight,
                  .out = input_grad.dx,
                  .accumulate = input_grad.accumulate,
                  .epilogue = input_grad.epilogue()},
                 stream);
}

}  // namespace filigree
