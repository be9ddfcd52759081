// What linears of two thin factors and nothing else have in common; `low_rank` and `cola` differ in
// how factors start and in what happens between them.
#pragma once

#include <vector>

#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/low_rank_factors.h"

namespace filigree {

class ThinLinear : public Linear {
 public:
  void Bind(std::span<const BoundParameter> parameters, TensorView) override {
    factors_.Bind(parameters.first(2));
    bias_.Bind(parameters);
  }

  void Materialize(Stream&) override {}
  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }
  bool pads() const override { return true; }

  LinearFlops flops() const override {
    return {ProductFlops(spec_), 2.0 * static_cast<double>(factors_.count()),
            2.0 * static_cast<double>(factors_.padded_count())};
  }
  LinearMemory memory(DType) const override { return {}; }

 protected:
  ThinLinear(const LinearSpec& spec, FactorKind kind, int64_t rank, double scale, Backend& backend)
      : spec_(spec), factors_(spec, kind, rank, scale, backend), bias_(spec, backend) {}

  // Both factors normal with this standard deviation, and the bias.
  std::vector<Parameter> NormalFactors(double std) const {
    const FactorInit init = {InitKind::kNormal, std};
    std::vector<Parameter> parameters;
    factors_.AppendParameters(init, init, &parameters);
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  const LinearSpec spec_;
  LowRankFactors factors_;
  LinearBias bias_;
};

// Factors have no layout to draw.
inline SparseLayout DrawNoLayout(const LinearSpec&, const SparsitySpec&, uint64_t) { return {}; }

// Linears of this class need nothing but their specs.
template <typename Class>
std::unique_ptr<Linear> CreateThin(const LinearSpec& linear, const SparsitySpec& sparsity,
                                   SparseLayout, Backend& backend) {
  return std::make_unique<Class>(linear, sparsity, backend);
}

}  // namespace filigree
