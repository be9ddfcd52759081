#include "trainer/linear/low_rank_group.h"

#include <optional>

namespace filigree {
namespace {

// Elements from one part's view to the next one's, or -1 where that differs between parts. Without
// gradients (inference) theirs are all null, and 0 apart.
int64_t Step(const std::vector<const LowRankFactors*>& parts, TensorView FactorProducts::*view) {
  const auto begin = [&](size_t i) {
    const TensorView matrix = parts[i]->products().*view;
    return reinterpret_cast<intptr_t>(matrix.data()) /
           static_cast<intptr_t>(SizeOf(matrix.dtype()));
  };
  const int64_t step = begin(1) - begin(0);
  for (size_t i = 2; i < parts.size(); ++i) {
    if (begin(i) - begin(i - 1) != step) return -1;
  }
  return step;
}

// One product for all parts, if they are alike.
std::optional<FactorProducts> Joined(const std::vector<const LowRankFactors*>& parts) {
  if (parts.size() < 2) return std::nullopt;
  FactorProducts joined = parts.front()->products();
  for (const LowRankFactors* part : parts) {
    const FactorProducts& own = part->products();
    if (own.rank() != joined.rank() || own.out() != joined.out()) return std::nullopt;
    if (own.a.cols() != joined.a.cols() || own.scale != joined.scale) return std::nullopt;
  }
  joined.count = static_cast<int64_t>(parts.size());
  joined.a_step = Step(parts, &FactorProducts::a);
  joined.b_step = Step(parts, &FactorProducts::b);
  joined.a_grad_step = Step(parts, &FactorProducts::a_grads);
  joined.b_grad_step = Step(parts, &FactorProducts::b_grads);
  const bool regular =
      joined.a_step > 0 && joined.b_step > 0 && joined.a_grad_step >= 0 && joined.b_grad_step >= 0;
  return regular ? std::optional(joined) : std::nullopt;
}

}  // namespace

LowRankGroup::LowRankGroup(const std::vector<const LowRankFactors*>& parts, Backend& backend)
    : backend_(backend) {
  if (const std::optional<FactorProducts> joined = Joined(parts)) {
    products_ = {*joined};
    return;
  }
  for (const LowRankFactors* part : parts) products_.push_back(part->products());
}

void LowRankGroup::Shrink(ConstTensorView x, TensorView inner, Stream& stream) const {
  ForEach([&](const FactorProducts& products, int64_t column, int64_t) {
    products.Shrink(backend_, x, inner.Cols(column, products.count * products.rank()), stream);
  });
}

void LowRankGroup::ExpandBackward(ConstTensorView inner, ConstTensorView dy, TensorView dinner,
                                  Stream& stream) const {
  ForEach([&](const FactorProducts& products, int64_t column, int64_t out) {
    const int64_t width = products.count * products.rank();
    products.ExpandBackward(backend_, inner.Cols(column, width),
                            dy.Cols(out, products.count * products.out()),
                            dinner.Cols(column, width), stream);
  });
}

void LowRankGroup::ShrinkBackward(ConstTensorView x, ConstTensorView dinner, Stream& stream) const {
  ForEach([&](const FactorProducts& products, int64_t column, int64_t) {
    products.ShrinkBackward(backend_, x, dinner.Cols(column, products.count * products.rank()),
                            stream);
  });
}

void LowRankGroup::Form(TensorView weight, Stream& stream) const {
  ForEach([&](const FactorProducts& products, int64_t, int64_t out) {
    products.Form(backend_, weight.Rows(out, products.count * products.out()), stream);
  });
}

void LowRankGroup::AddGradients(ConstTensorView dense_grads, Stream& stream) const {
  ForEach([&](const FactorProducts& products, int64_t, int64_t out) {
    products.AddGradients(backend_, dense_grads.Rows(out, products.count * products.out()), stream);
  });
}

}  // namespace filigree
