// The factors of several linears with one input. Where they are alike and lie regularly in the flat
// buffer a product with all of them is one batch; else they are taken one by one.
#pragma once

#include <vector>

#include "trainer/linear/low_rank_factors.h"

namespace filigree {

class LowRankGroup {
 public:
  // `parts` are bound.
  LowRankGroup(const std::vector<const LowRankFactors*>& parts, Backend& backend);

  // As FactorProducts' of the same names, with the parts' views side by side: x [T, in],
  // inner [T, sum of ranks], dy [T, sum of outs]; padding included.
  void Shrink(ConstTensorView x, TensorView inner, Stream& stream) const;
  void ExpandBackward(ConstTensorView inner, ConstTensorView dy, TensorView dinner,
                      Stream& stream) const;
  void ShrinkBackward(ConstTensorView x, ConstTensorView dinner, Stream& stream) const;
  // The parts' weights one under the other, [sum of outs, in].
  void Form(TensorView weight, Stream& stream) const;
  void AddGradients(ConstTensorView dense_grads, Stream& stream) const;

 private:
  // Calls fn(products, first inner column, first output).
  template <typename Fn>
  void ForEach(const Fn& fn) const {
    int64_t inner = 0, out = 0;
    for (const FactorProducts& products : products_) {
      fn(products, inner, out);
      inner += products.count * products.rank();
      out += products.count * products.out();
    }
  }

  std::vector<FactorProducts> products_;  // one for all parts, or one each
  Backend& backend_;
};

}  // namespace filigree
