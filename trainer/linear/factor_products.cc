#include "trainer/linear/factor_products.h"

namespace filigree {

void FactorProducts::Shrink(Backend& backend, ConstTensorView x, TensorView inner,
                            Stream& stream) const {
  backend.MatMul({.a = x,
                  .b = a,
                  .out = inner.Cols(0, rank()),
                  .transpose_b = true,
                  .scale = scale,
                  .batch = Batch(0, a_step, rank())},
                 stream);
}

void FactorProducts::ExpandBackward(Backend& backend, ConstTensorView inner, ConstTensorView dy,
                                    TensorView dinner, Stream& stream) const {
  backend.MatMul({.a = dy.Cols(0, out()),
                  .b = inner.Cols(0, rank()),
                  .out = b_grads,
                  .transpose_a = true,
                  .accumulate = adds(),
                  .batch = Batch(out(), rank(), b_grad_step)},
                 stream);
  backend.MatMul({.a = dy.Cols(0, out()),
                  .b = b,
                  .out = dinner.Cols(0, rank()),
                  .scale = scale,
                  .batch = Batch(out(), b_step, rank())},
                 stream);
}

void FactorProducts::ShrinkBackward(Backend& backend, ConstTensorView x, ConstTensorView dinner,
                                    Stream& stream) const {
  backend.MatMul({.a = dinner.Cols(0, rank()),
                  .b = x,
                  .out = a_grads,
                  .transpose_a = true,
                  .accumulate = adds(),
                  .batch = Batch(rank(), 0, a_grad_step)},
                 stream);
}

void FactorProducts::Form(Backend& backend, TensorView weight, Stream& stream) const {
  backend.MatMul({.a = b,
                  .b = a,
                  .out = weight.Rows(0, out()),
                  .scale = scale,
                  .batch = Batch(b_step, a_step, out() * weight.row_stride())},
                 stream);
}

void FactorProducts::AddGradients(Backend& backend, ConstTensorView dense_grads,
                                  Stream& stream) const {
  const ConstTensorView first = dense_grads.Rows(0, out());
  const int64_t step = out() * dense_grads.row_stride();
  backend.MatMul({.a = b,
                  .b = first,
                  .out = a_grads,
                  .transpose_a = true,
                  .accumulate = adds(),
                  .scale = scale,
                  .batch = Batch(b_step, step, a_grad_step)},
                 stream);
  backend.MatMul({.a = first,
                  .b = a,
                  .out = b_grads,
                  .transpose_b = true,
                  .accumulate = adds(),
                  .scale = scale,
                  .batch = Batch(step, a_step, b_grad_step)},
                 stream);
}

}  // namespace filigree
