// A product with a dense weight that lies in the flat buffer as compute reads it; of several,
// theirs one under the other.
#pragma once

#include "kernels/backend.h"
#include "trainer/linear/linear.h"

namespace filigree {

struct DenseProduct {
  TensorView weight, grads;  // [rows, cols], padding included; grads empty where nothing trains
  const bool* overwrite = nullptr;  // BoundParameter's, of the gradients

  // y [T, rows] = x [T, cols] W^T + bias, and so on, as Linear's.
  void Forward(Backend& backend, ConstTensorView x, TensorView y, ConstTensorView bias,
               const ProductEpilogue& epilogue, Stream& stream) const;
  // The weight's gradient and the input's.
  void Backward(Backend& backend, ConstTensorView x, ConstTensorView dy,
                const InputGrad& input_grad, Stream& stream) const;
};

}  // namespace filigree
