// The products with the factors of one linear, or of several that are alike and lie regularly in
// the flat buffer, as those of q, k and v or of gate and up do: then each product is one batch.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace filigree {

// W = scale * B A of each; views are padded as the factors are. Of several, the activations between
// the factors lie side by side, [T, count * r], and so do outputs, [T, count * out].
struct FactorProducts {
  int64_t count = 1;
  double scale = 1;
  const bool* overwrite = nullptr;  // BoundParameter's, of the gradients
  TensorView a = {}, a_grads = {};  // [r, in] of the first
  TensorView b = {}, b_grads = {};  // [out, r]
  int64_t a_step = 0, b_step = 0, a_grad_step = 0, b_grad_step = 0;  // elements to the next

  int64_t rank() const { return a.rows(); }
  int64_t out() const { return b.rows(); }
  bool adds() const { return overwrite == nullptr || !*overwrite; }

  // inner = scale * x A^T.
  void Shrink(Backend& backend, ConstTensorView x, TensorView inner, Stream& stream) const;
  // Adds dy^T inner to B's gradient and writes dinner = scale * dy B.
  void ExpandBackward(Backend& backend, ConstTensorView inner, ConstTensorView dy,
                      TensorView dinner, Stream& stream) const;
  // Adds dinner^T x to A's gradient.
  void ShrinkBackward(Backend& backend, ConstTensorView x, ConstTensorView dinner,
                      Stream& stream) const;
  // weight = scale * B A, those of several one under the other [count * out, in].
  void Form(Backend& backend, TensorView weight, Stream& stream) const;
  // Adds scale * B^T G and scale * G A^T to the gradients, given G = dense_grads [count * out, in].
  void AddGradients(Backend& backend, ConstTensorView dense_grads, Stream& stream) const;

 private:
  // Elements from one product's operands and output to the next one's; nothing where there is one.
  MatMulBatch Batch(int64_t of_a, int64_t of_b, int64_t of_out) const {
    if (count == 1) return {};
    return {.count = count, .a = of_a, .b = of_b, .out = of_out};
  }
};

}  // namespace filigree
