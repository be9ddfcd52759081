// What the parameterisations share: the bias, the weight as a parameter, and their rows of the
// registry.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "trainer/linear/linear.h"

namespace filigree {

// The first [rows, cols] of a padded matrix.
template <typename View>
View Unpadded(View padded, int64_t rows, int64_t cols) {
  return padded.Rows(0, rows).Cols(0, cols);
}
// Zeroes the rest of it.
inline void ZeroPadding(Device& device, TensorView padded, int64_t rows, int64_t cols,
                        Stream& stream) {
  if (cols < padded.cols()) device.ZeroAsync(padded.Cols(cols, padded.cols() - cols), stream);
  if (rows < padded.rows()) device.ZeroAsync(padded.Rows(rows, padded.rows() - rows), stream);
}

// The bias of a linear: a dense [out] vector, or nothing.
class LinearBias {
 public:
  LinearBias(const LinearSpec& spec, Backend& backend) : spec_(spec), backend_(backend) {}

  // Appends the bias's parameter, if there is a bias.
  void AppendParameter(std::vector<Parameter>* parameters) const {
    if (!spec_.bias) return;
    Parameter bias;
    bias.name = spec_.name + ".bias";
    bias.shape = {spec_.out};
    bias.layout = SparseLayout::Dense(1, spec_.out);
    bias.padding_count = spec_.padded_out() - spec_.out;
    bias.init = InitKind::kZeros;
    parameters->push_back(std::move(bias));
  }
  // Takes the last of a linear's parameters.
  void Bind(std::span<const BoundParameter> parameters) {
    if (spec_.bias) bound_ = parameters.back();
    released_ = false;
  }
  // [padded out], or an empty view.
  ConstTensorView values() const { return bound_.values; }
  const BoundParameter& bound() const { return bound_; }
  // Where the gradient goes that a product over dy is to sum on its way: nowhere if it was
  // released.
  TensorView grads() const { return released_ ? TensorView() : bound_.grads; }
  bool adds() const { return bound_.adds(); }
  // The gradient, unless it was released, as a pass over dy.
  void Backward(ConstTensorView dy, Stream& stream) {
    if (!spec_.bias || released_) return;
    backend_.ColumnSum({.in = dy, .out = bound_.grads, .accumulate = bound_.adds()}, stream);
  }
  // Linear::ReleaseBiasGrad.
  BoundParameter Release() {
    released_ = spec_.bias;
    return bound_;
  }

 private:
  const LinearSpec spec_;
  Backend& backend_;
  BoundParameter bound_;
  bool released_ = false;
};

// Operations per token of one product with the whole weight, as asked for and as run with padding.
inline double ProductFlops(const LinearSpec& spec) {
  return 2.0 * static_cast<double>(spec.out) * static_cast<double>(spec.in);
}
inline double PaddedProductFlops(const LinearSpec& spec) {
  return 2.0 * static_cast<double>(spec.padded_out()) * static_cast<double>(spec.padded_in());
}

// The weight's parameter over its layout.
Parameter WeightParameter(const LinearSpec& spec, SparseLayout layout);

// A linear that stores single weights and multiplies the dense matrix that they are scattered to;
// `layout` is unstructured or n:m.
std::unique_ptr<Linear> MakeMaskedLinear(const LinearSpec& linear, SparseLayout layout,
                                         Backend& backend);

// The rows of the registry, one file each.
extern const Parameterisation kDenseParameterisation;
extern const Parameterisation kMaskedParameterisation;
extern const Parameterisation kBlockSparseParameterisation;
extern const Parameterisation kLowRankParameterisation;
extern const Parameterisation kSparsePlusLowRankParameterisation;
extern const Parameterisation kColaParameterisation;
extern const Parameterisation kNMParameterisation;

}  // namespace filigree
