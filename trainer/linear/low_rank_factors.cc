#include "trainer/linear/low_rank_factors.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace filigree {
namespace {

TensorView AsMatrix(TensorView segment, int64_t rows, int64_t cols) {
  return segment.data() ? segment.Reshape({rows, cols}) : TensorView();
}

}  // namespace

void LowRankFactors::AppendParameters(FactorInit a, FactorInit b,
                                      std::vector<Parameter>* parameters) const {
  const auto append = [&](const char* suffix, SparseLayout layout, FactorInit init) {
    Parameter& factor = parameters->emplace_back();
    factor.name = spec_.name + suffix;
    factor.shape = {layout.out(), layout.in()};
    factor.layout = std::move(layout);
    factor.decay = true;
    factor.init = init.kind;
    factor.init_std = init.std;
    factor.factor = kind_;
    factor.factor_scale = products_.scale;
  };
  append(".low_rank_a", SparseLayout::Dense(rank_, spec_.in, spec_.padded_in()), a);
  parameters->back().padding_count = (padded_rank_ - rank_) * spec_.padded_in();
  append(".low_rank_b", SparseLayout::Dense(spec_.out, rank_, padded_rank_), b);
  parameters->back().padding_count = (spec_.padded_out() - spec_.out) * padded_rank_;
}

void LowRankFactors::Bind(std::span<const BoundParameter> factors) {
  products_.overwrite = factors[0].overwrite;  // B's says the same
  products_.a = AsMatrix(factors[0].values, padded_rank_, spec_.padded_in());
  products_.a_grads = AsMatrix(factors[0].grads, padded_rank_, spec_.padded_in());
  products_.b = AsMatrix(factors[1].values, spec_.padded_out(), padded_rank_);
  products_.b_grads = AsMatrix(factors[1].grads, spec_.padded_out(), padded_rank_);
}

void LowRankFactors::Expand(ConstTensorView inner, TensorView y, bool accumulate,
                            ConstTensorView bias, const ProductEpilogue& epilogue,
                            Stream& stream) const {
  backend_.MatMul({.a = inner,
                   .b = b(),
                   .out = y,
                   .transpose_b = true,
                   .accumulate = accumulate,
                   .bias = bias,
                   .epilogue = epilogue},
                  stream);
}

void LowRankFactors::ShrinkBackward(ConstTensorView x, ConstTensorView dinner,
                                    const InputGrad& input_grad, Stream& stream) const {
  products_.ShrinkBackward(backend_, x, dinner, stream);
  if (input_grad.dx.empty()) return;
  backend_.MatMul({.a = dinner,
                   .b = a(),
                   .out = input_grad.dx,
                   .accumulate = input_grad.accumulate,
                   .epilogue = input_grad.epilogue()},
                  stream);
}

Status ValidateRank(const LinearSpec& linear, const SparsitySpec& sparsity) {
  if (sparsity.rank >= 1 && sparsity.rank <= std::min(linear.out, linear.in)) return OkStatus();
  return InvalidInput(linear.name + ": parameterisation " + sparsity.parameterisation +
                      " with rank " + std::to_string(sparsity.rank) + "; give a rank from 1 to " +
                      std::to_string(std::min(linear.out, linear.in)));
}

FactorInit KaimingUniform(int64_t in) {
  return {InitKind::kUniform, 1.0 / std::sqrt(3.0 * static_cast<double>(in))};
}

}  // namespace filigree
