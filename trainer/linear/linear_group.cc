#include <algorithm>
#include <utility>

#include "kernels/swiglu_epilogue.h"
#include "trainer/linear/dense_product.h"
#include "trainer/linear/formed_product.h"
#include "trainer/linear/input_grams.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"
#include "trainer/linear/low_rank_group.h"

namespace filigree {
namespace {

template <typename T>
void AddSquares(ConstTensorView x, std::vector<double>* squares) {
  for (int64_t row = 0; row < x.rows(); ++row) {
    const T* values = x.As<T>() + row * x.row_stride();
    for (int64_t j = 0; j < x.cols(); ++j) {
      const double value = static_cast<float>(values[j]);
      (*squares)[j] += value * value;
    }
  }
}

}  // namespace

LinearGroup::LinearGroup(std::vector<std::unique_ptr<Linear>> parts, std::vector<LinearSpec> specs,
                         Backend& backend)
    : parts_(std::move(parts)),
      specs_(std::move(specs)),
      offsets_{0},
      inner_offsets_{0},
      backend_(backend) {
  CHECK_EQ(parts_.size(), specs_.size());
  for (const LinearSpec& spec : specs_) offsets_.push_back(offsets_.back() + spec.padded_out());
  for (const auto& part : parts_) {
    inner_offsets_.push_back(inner_offsets_.back() + part->inner_width());
  }
}

LinearGroup::LinearGroup(LinearGroup&&) noexcept = default;
LinearGroup::~LinearGroup() = default;

std::vector<FormedWeight*> LinearGroup::FormedWeights() const {
  std::vector<FormedWeight*> weights;
  for (const auto& part : parts_) {
    const std::optional<FormedPart> formed = part->formed_part();
    if (!formed) return {};
    weights.push_back(formed->weight);
    if (formed->weight->cols() != weights[0]->cols()) return {};
    if (formed->weight->keeps() != weights[0]->keeps()) return {};
    if (!formed->weight->factors() != !weights[0]->factors()) return {};
  }
  return weights;
}

// A padded input's gradient has padding, which sums over its columns leave out.
bool LinearGroup::JoinsFormed() const {
  return parts_.size() > 1 && specs_.front().padded_in() == specs_.front().in &&
         !FormedWeights().empty();
}

LinearMemory LinearGroup::memory(DType compute_dtype, bool biases_adjacent) const {
  LinearMemory sum;
  int64_t largest_scratch = 0;
  for (const auto& part : parts_) {
    const LinearMemory memory = part->memory(compute_dtype);
    sum.layout_bytes += memory.layout_bytes;
    sum.compute_copy_bytes += memory.compute_copy_bytes;
    sum.scratch_bytes += memory.scratch_bytes;
    largest_scratch = std::max(largest_scratch, memory.scratch_bytes);
  }
  const bool formed = JoinsFormed();
  if (!formed) sum.scratch_bytes = largest_scratch;
  if (has_bias() && !biases_adjacent && (formed || JoinedBlocks() != nullptr)) {  // joined_bias_
    sum.compute_copy_bytes += out() * static_cast<int64_t>(SizeOf(compute_dtype));
  }
  return sum;
}

PreparedLayout::StepUse LinearGroup::step_use(int64_t tokens, DType grad_dtype,
                                              bool biases_adjacent) const {
  if (const auto joined = JoinedBlocks()) {
    return joined->step_use(tokens, grad_dtype, has_bias() && biases_adjacent);
  }
  // Whoever has one part takes its bias's gradient away (ReleaseBiasGrad).
  const bool bias_sums = has_bias() && parts_.size() > 1;
  PreparedLayout::StepUse all;
  for (const auto& part : parts_) {
    const std::optional<BlockedProduct> product = part->blocked_product();
    if (!product) continue;
    const PreparedLayout::StepUse use = product->weight->step_use(tokens, grad_dtype, bias_sums);
    all.held_bytes += use.held_bytes;
    all.scratch_bytes = std::max(all.scratch_bytes, use.scratch_bytes);
  }
  return all;
}

void LinearGroup::BackwardBiases(ConstTensorView dy, Stream& stream) {
  if (biases_.empty()) return;
  const bool adds = biases_.front().adds();
  if (!bias_grads_.empty()) {
    return backend_.ColumnSum({.in = dy, .out = bias_grads_, .accumulate = adds}, stream);
  }
  for (size_t i = 0; i < biases_.size(); ++i) {
    backend_.ColumnSum(
        {.in = PaddedPart(dy, static_cast<int>(i)), .out = biases_[i].grads, .accumulate = adds},
        stream);
  }
}

void LinearGroup::Materialize(Stream& stream) {
  if (formed_) {
    formed_->Materialize(stream);
  } else {
    for (const auto& part : parts_) part->Materialize(stream);
  }
  if (joined_bias_.bytes() == 0) return;
  for (size_t i = 0; i < biases_.size(); ++i) {
    backend_.device().CopyAsync(bias_.Range(offsets_[i], offsets_[i + 1] - offsets_[i]),
                                biases_[i].values, stream);
  }
}

void LinearGroup::Forward(ConstTensorView x, TensorView y, TensorView inner,
                          const ProductEpilogue& epilogue, Stream& stream) {
  if (formed_) return formed_->Forward(x, y, bias_, epilogue, stream);
  if (dense_) return dense_->Forward(backend_, x, y, bias_, epilogue, stream);
  if (joined_) return ForwardJoined(x, y, inner, epilogue, stream);
  for (size_t i = 0; i < parts_.size(); ++i) {
    const int part = static_cast<int>(i);
    parts_[i]->Forward(InputOf(x, part), OutputOf(y, part), InnerPart(inner, part),
                       {.residual = OutputOf(epilogue.residual, part),
                        .pre_activation = OutputOf(epilogue.pre_activation, part)},
                       stream);
    PadOutput(y, part, stream);
    PadOutput(epilogue.pre_activation, part, stream);
  }
  ApplySwiGlu(backend_, y, epilogue, stream);
}

void LinearGroup::Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                           const InputGrad& input_grad, Stream& stream) {
  if (!statistics_.empty()) AddStatistics(x.Cols(0, specs_[0].in), dy, stream);
  if (formed_) {
    BackwardBiases(dy, stream);
    return formed_->Backward(x, dy, input_grad, stream);
  }
  if (dense_) {
    BackwardBiases(dy, stream);
    return dense_->Backward(backend_, x, dy, input_grad, stream);
  }
  if (joined_) return BackwardJoined(x, dy, inner, input_grad, stream);
  for (size_t i = 0; i < parts_.size(); ++i) {
    const int part = static_cast<int>(i);
    InputGrad part_grad = {.dx = InputOf(input_grad.dx, part),
                           .accumulate = input_grad.accumulate || i > 0};
    // The derivative of the activation multiplies the sum over the parts.
    if (i + 1 == parts_.size()) {
      part_grad.gelu_input = InputOf(input_grad.gelu_input, part);
      part_grad.swiglu = {.gate = InputOf(input_grad.swiglu.gate, part),
                          .up = InputOf(input_grad.swiglu.up, part),
                          .dup = InputOf(input_grad.swiglu.dup, part),
                          .linear = input_grad.swiglu.linear};
    }
    if (SumsInputGrad()) {
      part_grad.column_sums = input_grad.column_sums;
      part_grad.accumulate_sums = input_grad.accumulate_sums;
    }
    parts_[i]->Backward(InputOf(x, part), OutputOf(dy, part),
                        {InnerPart(inner.values, part), InnerPart(inner.grads, part)}, part_grad,
                        stream);
    if (i == 0) PadInputGrad(input_grad, part, stream);
  }
  if (!input_grad.column_sums.empty() && !SumsInputGrad()) {
    backend_.ColumnSum({.in = input_grad.dx,
                        .out = input_grad.column_sums,
                        .accumulate = input_grad.accumulate_sums},
                       stream);
  }
}

// Once in hundreds of steps, so that inputs are squared on the host rather than by an operation of
// the backend.
void LinearGroup::AddStatistics(ConstTensorView x, ConstTensorView dy, Stream& stream) {
  std::vector<std::byte> host;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const LinearStatistics& statistics = statistics_[i];
    if (!statistics.dense_grads.empty()) {
      backend_.MatMul({.a = Part(dy, static_cast<int>(i)),
                       .b = x,
                       .out = statistics.dense_grads,
                       .transpose_a = true,
                       .accumulate = true},
                      stream);
    }
    AddInputGrams(x, statistics.input_grams, backend_, stream);
    if (!statistics.input_squares) continue;
    if (host.empty()) host.resize(x.size() * SizeOf(x.dtype()));
    const TensorView copy(host.data(), x.dtype(), {x.rows(), x.cols()});
    backend_.device().CopyAsync(copy, x, stream);
    stream.Synchronize();
    if (x.dtype() == DType::kF32) AddSquares<float>(copy, statistics.input_squares);
    if (x.dtype() == DType::kF64) AddSquares<double>(copy, statistics.input_squares);
    if (x.dtype() == DType::kBF16) AddSquares<BFloat16>(copy, statistics.input_squares);
  }
}

void LinearGroup::PadOutput(TensorView y, int i, Stream& stream) {
  if (y.empty() || parts_[i]->pads()) return;
  ZeroPadding(backend_.device(), PaddedPart(y, i), y.rows(), specs_[i].out, stream);
}

// Whoever adds to dx finds its padding zero, and leaves it so.
void LinearGroup::PadInputGrad(const InputGrad& input_grad, int i, Stream& stream) {
  if (input_grad.dx.empty() || input_grad.accumulate || parts_[i]->pads()) return;
  for (const TensorView grad : {input_grad.dx, input_grad.swiglu.dup}) {
    if (!grad.empty()) {
      ZeroPadding(backend_.device(), grad, grad.rows(), specs_[i].in, stream);
    }
  }
}

void LinearGroup::ForwardJoined(ConstTensorView x, TensorView y, TensorView inner,
                                const ProductEpilogue& epilogue, Stream& stream) {
  if (factors_) factors_->Shrink(x, inner, stream);
  backend_.Spmm({.weight = joined_.get(),
                 .values = joined_values_,
                 .x = x,
                 .y = y,
                 .bias = bias_,
                 .epilogue = epilogue,
                 .low_rank = {inner, factors_b_}},
                stream);
}

void LinearGroup::BackwardJoined(ConstTensorView x, ConstTensorView dy,
                                 const InnerActivations& inner, const InputGrad& input_grad,
                                 Stream& stream) {
  backend_.Sddmm({.weight = joined_.get(),
                  .dy = dy,
                  .x = x,
                  .dvalues = joined_grads_,
                  .accumulate = products_[0].values.adds(),
                  .dy_sums = bias_grads_,
                  .accumulate_sums = bias_grads_.empty() || biases_.front().adds()},
                 stream);
  if (factors_) {
    factors_->ExpandBackward(inner.values, dy, inner.grads, stream);
    factors_->ShrinkBackward(x, inner.grads, stream);
  }
  if (bias_grads_.empty()) BackwardBiases(dy, stream);
  if (input_grad.dx.empty()) return;
  backend_.SpmmTransposed({.weight = joined_.get(),
                           .values = joined_values_,
                           .dy = dy,
                           .dx = input_grad.dx,
                           .accumulate = input_grad.accumulate,
                           .epilogue = input_grad.epilogue(),
                           .low_rank = {inner.grads, factors_a_}},
                          stream);
}

}  // namespace filigree
