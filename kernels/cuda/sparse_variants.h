// The kernels that can serve a blocked product, best first: each operation takes the first row that
// can do what is asked (sparse_ops.cc). A new kernel is a row.
#pragma once

#include <span>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/prepared_layout.h"

namespace filigree {

// y = x W^T (+ bias), or transposed dx (+)= dy W; then the epilogue.
struct BlockProduct {
  const CudaPreparedLayout* weight = nullptr;
  bool transposed = false;
  bool accumulate = false;
  ConstTensorView values;
  ConstTensorView in;  // [T, in], or [T, out] if transposed
  TensorView out;      // [T, out], or [T, in]
  ConstTensorView bias = {};
  ProductEpilogue epilogue = {};
  LowRankTerm low_rank = {};

  const SparseLayout& layout() const { return weight->layout(); }
  int64_t tokens() const { return in.rows(); }
};

struct BlockProductVariant {
  const char* name;
  bool (*can_implement)(const BlockProduct& product);
  void (*launch)(CudaBackend& backend, const BlockProduct& product, Stream& stream);
};
std::span<const BlockProductVariant> BlockProductVariants();

struct BlockGradVariant {
  const char* name;
  bool (*can_implement)(const SddmmArgs& args);
  void (*launch)(CudaBackend& backend, const SddmmArgs& args, Stream& stream);
  bool sums_dy = false;  // whether it sees to SddmmArgs::dy_sums
};
// SddmmArgs::dy_sums as a pass over dy.
void SumOutputGrad(CudaBackend& backend, const SddmmArgs& args, Stream& stream);
std::span<const BlockGradVariant> BlockGradVariants();

// The rows' functions, by the file that holds them.
// sparse_sm90.cc: the Hopper kernels.
bool CanMultiplySm90(const BlockProduct& product);
void MultiplySm90(CudaBackend& backend, const BlockProduct& product, Stream& stream);
bool CanSampleSm90(const SddmmArgs& args);
void SampleSm90(CudaBackend& backend, const SddmmArgs& args, Stream& stream);
// sparse_ops.cc: a low-rank term as products of its own (kernels/low_rank_term.h).
bool HasLowRankTerm(const BlockProduct& product);
void MultiplyThenFactors(CudaBackend& backend, const BlockProduct& product, Stream& stream);
// The rest takes no low-rank term.
// sparse_group.cc: joined weights part by part.
bool CanMultiplyParts(const BlockProduct& product);
void MultiplyParts(CudaBackend& backend, const BlockProduct& product, Stream& stream);
bool CanSampleParts(const SddmmArgs& args);
void SampleParts(CudaBackend& backend, const SddmmArgs& args, Stream& stream);
// sparse_mma.cc: the mma.sync kernels.
bool CanMultiplyMma(const BlockProduct& product);
void MultiplyMma(CudaBackend& backend, const BlockProduct& product, Stream& stream);
bool CanSampleMma(const SddmmArgs& args);
void SampleMma(CudaBackend& backend, const SddmmArgs& args, Stream& stream);
// sparse_dense.cc: through the dense weight, for everything but joined weights.
void MultiplyDense(CudaBackend& backend, const BlockProduct& product, Stream& stream);
void SampleDense(CudaBackend& backend, const SddmmArgs& args, Stream& stream);

}  // namespace filigree
