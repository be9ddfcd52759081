// A product with a dense weight that is formed from what is stored: expanded single weights, or
// factors and a sparse part summed.
//
// Several weights with one input are one product, theirs one under the other: [sum of rows, cols].
// The dense gradient lives in a scratch that all products of the model share, for as long as it
// takes to project it onto what is stored. The weight is kept from one change of the values to the
// next, or lives in the scratch too and is formed for each use.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/low_rank_group.h"

namespace filigree {

// One weight [rows, cols], padding included: zero, as its gradient is, once formed.
class FormedWeight {
 public:
  virtual ~FormedWeight() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  // Whether it is worth its memory.
  virtual bool keeps() const = 0;
  // Whether it is 2:4, once formed.
  virtual TwoFourKind two_four() const { return TwoFourKind::kNone; }
  // Low-rank factors that are a part of it.
  virtual const LowRankFactors* factors() const { return nullptr; }
  // The stored cells: all of it, or, where there are factors, what is added to their product.
  struct Stored {
    const PreparedLayout* layout = nullptr;
    BoundParameter parameter;  // [stored]
  };
  virtual Stored stored() const = 0;
};

class FormedProduct {
 public:
  // `weights` have one width, all of them factors or none, and all or none keep their memory; they
  // outlive it.
  FormedProduct(std::vector<FormedWeight*> weights, Backend& backend);

  // Elements of scratch for Backward.
  int64_t size() const { return rows_ * cols_; }
  // After the weights' own parameters are bound. `scratch`: at least size() elements; without it
  // there is no Backward, and the weight is kept.
  void Bind(DType dtype, TensorView scratch);

  // After every change of the values, before Forward.
  void Materialize(Stream& stream);
  // y [T, rows] = x [T, cols] W^T + bias, and so on, as Linear's.
  void Forward(ConstTensorView x, TensorView y, ConstTensorView bias,
               const ProductEpilogue& epilogue, Stream& stream);
  void Backward(ConstTensorView x, ConstTensorView dy, const InputGrad& input_grad, Stream& stream);

 private:
  void Form(Stream& stream);
  // Adds the gradients of what is stored, given the weights'.
  void AddGradients(Stream& stream);
  // args.b is the weight.
  void Multiply(const MatMulArgs& args, Stream& stream);
  // Calls fn with what each weight stores and its rows of `all`.
  template <typename View, typename Fn>
  void ForEachWeight(View all, const Fn& fn) {
    int64_t begin = 0;
    for (const FormedWeight* weight : weights_) {
      fn(weight->stored(), all.Rows(begin, weight->rows()));
      begin += weight->rows();
    }
  }

  std::vector<FormedWeight*> weights_;
  Backend& backend_;
  std::unique_ptr<LowRankGroup> factors_;  // of all weights, or of none
  int64_t rows_ = 0, cols_ = 0;
  bool kept_ = false;
  DType dtype_ = DType::kF32;
  DeviceBuffer copy_;    // where the weight is kept, from the first Materialize on
  TensorView weight_;    // [rows, cols]: the copy, or the scratch
  std::unique_ptr<TwoFourWeight> two_four_;  // of the copy, or none
  TensorView gradient_;  // [rows, cols]: the scratch
};

}  // namespace filigree
