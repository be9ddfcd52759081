// The low-rank part of a linear: A [r, in], B [out, r] and the products with them. Where the spec
// pads, columns of A and rows of B are zero there, and all views are as wide. The rank is padded to
// the device's row alignment in the same way: rows of A, columns of B and of what lies between
// them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/linear/factor_products.h"
#include "trainer/linear/linear.h"

namespace filigree {

// How one factor starts.
struct FactorInit {
  InitKind kind = InitKind::kZeros;
  double std = 0;
};

class LowRankFactors {
 public:
  // `scale`: alpha / r of W = scale * B A.
  LowRankFactors(const LinearSpec& spec, FactorKind kind, int64_t rank, double scale,
                 Backend& backend)
      : spec_(spec),
        kind_(kind),
        rank_(rank),
        padded_rank_(AlignUp(rank, backend.device().row_alignment())),
        backend_(backend),
        products_{.scale = scale} {}

  int64_t rank() const { return rank_; }
  // Columns of what lies between the factors.
  int64_t padded_rank() const { return padded_rank_; }
  // Values of both factors, without and with their padding.
  int64_t count() const { return rank_ * (spec_.out + spec_.in); }
  int64_t padded_count() const { return padded_rank_ * (spec_.padded_out() + spec_.padded_in()); }
  // Appends NAME.low_rank_a and NAME.low_rank_b.
  void AppendParameters(FactorInit a, FactorInit b, std::vector<Parameter>* parameters) const;
  // `factors`: the bound parameters of A and B.
  void Bind(std::span<const BoundParameter> factors);

  // inner [T, r] = scale * x A^T.
  void Shrink(ConstTensorView x, TensorView inner, Stream& stream) const {
    products_.Shrink(backend_, x, inner, stream);
  }
  // y [T, out] (+)= inner B^T + bias, then `epilogue`.
  void Expand(ConstTensorView inner, TensorView y, bool accumulate, ConstTensorView bias,
              const ProductEpilogue& epilogue, Stream& stream) const;
  // The gradients of the two: Expand's adds to B's and writes dinner = scale * dy B, Shrink's adds
  // dinner^T x to A's and computes the input's, dinner A. (The scale is Shrink's; it comes first so
  // that kernels which sum dinner A beside another product need not know of it.)
  void ExpandBackward(ConstTensorView inner, ConstTensorView dy, TensorView dinner,
                      Stream& stream) const {
    products_.ExpandBackward(backend_, inner, dy, dinner, stream);
  }
  void ShrinkBackward(ConstTensorView x, ConstTensorView dinner, const InputGrad& input_grad,
                      Stream& stream) const;

  // weight [out, in] = scale * B A, padding zero.
  void Form(TensorView weight, Stream& stream) const { products_.Form(backend_, weight, stream); }
  // Adds the gradients of A and B, given the dense gradient G [out, in] of W: scale * B^T G and
  // scale * G A^T.
  void AddGradients(ConstTensorView dense_grads, Stream& stream) const {
    products_.AddGradients(backend_, dense_grads, stream);
  }

  // What products with several linears' factors, or kernels that multiply by the factors beside
  // another product, read and write.
  const FactorProducts& products() const { return products_; }
  double scale() const { return products_.scale; }
  ConstTensorView a() const { return products_.a; }  // [padded r, padded in]
  ConstTensorView b() const { return products_.b; }  // [padded out, padded r]
  TensorView a_grads() const { return products_.a_grads; }
  TensorView b_grads() const { return products_.b_grads; }
  bool adds() const { return products_.adds(); }  // BoundParameter::adds of both

 private:
  const LinearSpec spec_;
  const FactorKind kind_;
  const int64_t rank_, padded_rank_;
  Backend& backend_;
  FactorProducts products_;
};

// Problems of a rank for this linear, or OK.
Status ValidateRank(const LinearSpec& linear, const SparsitySpec& sparsity);

// Kaiming-uniform with a = sqrt(5), U(+-1/sqrt(in)): what PyTorch's linear starts from.
FactorInit KaimingUniform(int64_t in);

}  // namespace filigree
