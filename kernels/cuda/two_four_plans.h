// Which product with a 2:4 weight to take: on sparse tensor cores, by which algorithm, where that
// is clearly the faster, or the dense one. Timed once a shape and epilogue, and logged.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/cuda/two_four_product.h"

namespace filigree {

// The product of `args`, whose b is a weight of which `kind` holds, or nothing where cuSPARSELt is
// not asked: sums over a side that is not 2:4, few tokens, what does not lie at multiples of 16
// bytes.
std::optional<TwoFourCall> TwoFourCallOf(const MatMulArgs& args, TwoFourKind kind);

struct TwoFourChoice {
  bool sparse = false;
  int algorithm = TwoFourProduct::kDefaultAlgorithm;
};

class TwoFourPlans {
 public:
  // nullptr where there is no cuSPARSELt for this card. `backend` must outlive it.
  static std::shared_ptr<TwoFourPlans> Make(CudaBackend& backend);

  const CuSparseLtContext& context() const { return *context_; }
  // Memory for one product or compression; the next on the stream may use it again.
  void* workspace() const { return backend_.matmul_plans().workspace().data(); }
  size_t workspace_bytes() const { return backend_.matmul_plans().workspace().bytes(); }

  // A weight's compressed form for a side, made of it as it is; nullptr where cuSPARSELt does not
  // take it. Waits for the device.
  std::unique_ptr<CompressedSide> Compress(const TwoFourSide& side, const void* weight,
                                           Stream& stream);

  // Of `args`, of which `call` is the product. nullptr: not chosen yet.
  const TwoFourChoice* Find(const TwoFourCall& call, const MatMulArgs& args) const;
  // Times both, which waits for the device, and keeps the choice. The sparse one counts with a
  // compression of the weight, as in a step of one micro-batch: more gain more. `compressed` is up
  // to date; without one the choice is dense.
  const TwoFourChoice& Choose(const TwoFourCall& call, const MatMulArgs& args,
                              CompressedSide* compressed, Stream& stream);

  // The whole of `args` with this product, what it does not do of the epilogue in passes. False,
  // and nothing done, where cuSPARSELt refuses.
  bool Run(TwoFourProduct& product, const TwoFourCall& call, const MatMulArgs& args,
           const CompressedSide& compressed, Stream& stream);

 private:
  using Key = std::array<int64_t, 8>;
  explicit TwoFourPlans(CudaBackend& backend) : backend_(backend) {}
  static Key KeyOf(const TwoFourCall& call, const MatMulArgs& args);
  // Of its algorithms the fastest; nullptr where there is none.
  std::unique_ptr<TwoFourProduct> Fastest(const TwoFourCall& call, const CompressedSide& compressed,
                                          cudaStream_t stream) const;

  CudaBackend& backend_;
  std::unique_ptr<CuSparseLtContext> context_;
  std::map<Key, TwoFourChoice> choices_;
  // By out, in and transposed; nullptr where there are none.
  std::map<std::array<int64_t, 3>, std::shared_ptr<const CompressedPlaces>> places_;
};

}  // namespace filigree
