// CudaBackend's 2:4 weights.
#pragma once

#include <array>
#include <list>
#include <memory>

#include "kernels/cuda/two_four_plans.h"

namespace filigree {

// A product goes where TwoFourPlans has found it faster. Compressed forms, one for each side that
// some product on sparse tensor cores sums over, are made when the first of these comes, and anew
// at every Update: so also where launches are recorded in between and submitted later.
class CudaTwoFourWeight final : public TwoFourWeight {
 public:
  // `backend` must outlive it.
  CudaTwoFourWeight(ConstTensorView weight, TwoFourKind kind, std::shared_ptr<TwoFourPlans> plans,
                    CudaBackend& backend);

  void Update(Stream& stream) override;
  void MatMul(const MatMulArgs& args, Stream& stream) override;

 private:
  // False: the product is dense.
  bool Multiply(const TwoFourCall& call, const MatMulArgs& args, Stream& stream);
  TwoFourProduct& ProductOf(const TwoFourCall& call, int algorithm);

  const ConstTensorView weight_;
  const TwoFourKind kind_;
  CudaBackend& backend_;
  const std::shared_ptr<TwoFourPlans> plans_;
  std::array<std::unique_ptr<CompressedSide>, 2> sides_;  // forward, transposed
  std::list<std::unique_ptr<TwoFourProduct>> products_;   // newest first
};

}  // namespace filigree
