#include "trainer/linear/low_rank_group.h"

#include <utility>

namespace filigree {
namespace {

// Elements from one factor to the next, or -1 where that differs between parts.
template <typename FactorOf>
int64_t Step(const std::vector<const LowRankFactors*>& parts, const FactorOf& factor_of) {
  const auto begin = [&](size_t i) {
    const ConstTensorView factor = factor_of(*parts[i]);
    return reinterpret_cast<intptr_t>(factor.data()) / static_cast<intptr_t>(SizeOf(factor.dtype()));
  };
  const int64_t step = begin(1) - begin(0);
  for (size_t i = 2; i < parts.size(); ++i) {
    if (begin(i) - begin(i - 1) != step) return -1;
  }
  return step;
}

}  // namespace

LowRankGroup::LowRankGroup(std::vector<const LowRankFactors*> parts, Backend& backend)
    : parts_(std::move(parts)), backend_(backend) {
  if (parts_.size() < 2) return;
  const LowRankFactors& first = *parts_.front();
  for (const LowRankFactors* part : parts_) {
    if (part->padded_rank() != first.padded_rank() || part->scale() != first.scale()) return;
    if (part->a().cols() != first.a().cols() || part->b().rows() != first.b().rows()) return;
  }
  a_step_ = Step(parts_, [](const LowRankFactors& f) { return f.a(); });
  b_step_ = Step(parts_, [](const LowRankFactors& f) { return f.b(); });
  a_grad_step_ = Step(parts_, [](const LowRankFactors& f) -> ConstTensorView { return f.a_grads(); });
  b_grad_step_ = Step(parts_, [](const LowRankFactors& f) -> ConstTensorView { return f.b_grads(); });
  // Without gradients (inference) all of theirs are null, and 0 apart.
  regular_ = a_step_ > 0 && b_step_ > 0 && a_grad_step_ >= 0 && b_grad_step_ >= 0;
}

void LowRankGroup::Shrink(ConstTensorView x, TensorView inner, Stream& stream) const {
  if (!regular_) {
    return ForEachPart([&](const LowRankFactors& part, int64_t column, int64_t) {
      part.Shrink(x, inner.Cols(column, part.padded_rank()), stream);
    });
  }
  const LowRankFactors& first = *parts_.front();
  const int64_t count = static_cast<int64_t>(parts_.size()), rank = first.padded_rank();
  backend_.MatMul({.a = x,
                   .b = first.a(),
                   .out = inner.Cols(0, rank),
                   .transpose_b = true,
                   .scale = first.scale(),
                   .batch = {.count = count, .b = a_step_, .out = rank}},
                  stream);
}

void LowRankGroup::ExpandBackward(ConstTensorView inner, ConstTensorView dy, TensorView dinner,
                                  Stream& stream) const {
  if (!regular_) {
    return ForEachPart([&](const LowRankFactors& part, int64_t column, int64_t out) {
      const int64_t rank = part.padded_rank();
      part.ExpandBackward(inner.Cols(column, rank), dy.Cols(out, part.b().rows()),
                          dinner.Cols(column, rank), stream);
    });
  }
  const LowRankFactors& first = *parts_.front();
  const int64_t count = static_cast<int64_t>(parts_.size()), rank = first.padded_rank();
  const int64_t out = first.b().rows();
  backend_.MatMul({.a = dy.Cols(0, out),
                   .b = inner.Cols(0, rank),
                   .out = first.b_grads(),
                   .transpose_a = true,
                   .accumulate = first.adds(),
                   .batch = {.count = count, .a = out, .b = rank, .out = b_grad_step_}},
                  stream);
  backend_.MatMul({.a = dy.Cols(0, out),
                   .b = first.b(),
                   .out = dinner.Cols(0, rank),
                   .scale = first.scale(),
                   .batch = {.count = count, .a = out, .b = b_step_, .out = rank}},
                  stream);
}

void LowRankGroup::ShrinkBackward(ConstTensorView x, ConstTensorView dinner, Stream& stream) const {
  if (!regular_) {
    return ForEachPart([&](const LowRankFactors& part, int64_t column, int64_t) {
      part.ShrinkBackward(x, dinner.Cols(column, part.padded_rank()), {}, stream);
    });
  }
  const LowRankFactors& first = *parts_.front();
  const int64_t count = static_cast<int64_t>(parts_.size()), rank = first.padded_rank();
  backend_.MatMul({.a = dinner.Cols(0, rank),
                   .b = x,
                   .out = first.a_grads(),
                   .transpose_a = true,
                   .accumulate = first.adds(),
                   .batch = {.count = count, .a = rank, .out = a_grad_step_}},
                  stream);
}

void LowRankGroup::Form(TensorView weight, Stream& stream) const {
  if (!regular_) {
    return ForEachPart([&](const LowRankFactors& part, int64_t, int64_t out) {
      part.Form(weight.Rows(out, part.b().rows()), stream);
    });
  }
  const LowRankFactors& first = *parts_.front();
  const int64_t count = static_cast<int64_t>(parts_.size()), out = first.b().rows();
  backend_.MatMul({.a = first.b(),
                   .b = first.a(),
                   .out = weight.Rows(0, out),
                   .scale = first.scale(),
                   .batch = {.count = count,
                             .a = b_step_,
                             .b = a_step_,
                             .out = out * weight.row_stride()}},
                  stream);
}

void LowRankGroup::AddGradients(ConstTensorView dense_grads, Stream& stream) const {
  if (!regular_) {
    return ForEachPart([&](const LowRankFactors& part, int64_t, int64_t out) {
      part.AddGradients(dense_grads.Rows(out, part.b().rows()), stream);
    });
  }
  const LowRankFactors& first = *parts_.front();
  const int64_t count = static_cast<int64_t>(parts_.size()), out = first.b().rows();
  const int64_t step = out * dense_grads.row_stride();
  backend_.MatMul({.a = first.b(),
                   .b = dense_grads.Rows(0, out),
                   .out = first.a_grads(),
                   .transpose_a = true,
                   .accumulate = first.adds(),
                   .scale = first.scale(),
                   .batch = {.count = count, .a = b_step_, .b = step, .out = a_grad_step_}},
                  stream);
  backend_.MatMul({.a = dense_grads.Rows(0, out),
                   .b = first.a(),
                   .out = first.b_grads(),
                   .transpose_b = true,
                   .accumulate = first.adds(),
                   .scale = first.scale(),
                   .batch = {.count = count, .a = step, .b = a_step_, .out = b_grad_step_}},
                  stream);
}

}  // namespace filigree
