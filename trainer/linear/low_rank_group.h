// The factors of several linears with one input. Where they are alike and lie regularly in the flat
// buffer, as those of q, k and v or of gate and up do, a product with all of them is one batch; else
// they are taken one by one.
#pragma once

#include <vector>

#include "trainer/linear/low_rank_factors.h"

namespace filigree {

class LowRankGroup {
 public:
  // `parts` are bound, and outlive the group.
  LowRankGroup(std::vector<const LowRankFactors*> parts, Backend& backend);

  // As LowRankFactors' of the same names, with the parts' views side by side: x [T, in], inner [T, sum
  // of ranks], dy [T, sum of outs]; padding included.
  void Shrink(ConstTensorView x, TensorView inner, Stream& stream) const;
  void ExpandBackward(ConstTensorView inner, ConstTensorView dy, TensorView dinner,
                      Stream& stream) const;
  // The gradients of A alone.
  void ShrinkBackward(ConstTensorView x, ConstTensorView dinner, Stream& stream) const;
  // The parts' weights one under the other, [sum of outs, in].
  void Form(TensorView weight, Stream& stream) const;
  void AddGradients(ConstTensorView dense_grads, Stream& stream) const;

 private:
  // Calls fn(factors, first inner column, first output).
  template <typename Fn>
  void ForEachPart(const Fn& fn) const {
    int64_t inner = 0, out = 0;
    for (const LowRankFactors* part : parts_) {
      fn(*part, inner, out);
      inner += part->padded_rank();
      out += part->b().rows();
    }
  }

  std::vector<const LowRankFactors*> parts_;
  Backend& backend_;
  bool regular_ = false;
  int64_t a_step_ = 0, b_step_ = 0, a_grad_step_ = 0, b_grad_step_ = 0;  // elements
};

}  // namespace filigree
