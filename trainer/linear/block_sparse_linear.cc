// `block_sparse`: blocks stored, balanced over block rows and columns, drawn at random and fixed.
//
// Forward and input gradient multiply the stored blocks, the weight's gradient is sampled on them
// (SDDMM): time, memory and traffic all follow the density.
#include <string>

#include "kernels/base/math.h"
#include "kernels/sparse/random_layout.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

class BlockSparseLinear final : public Linear {
 public:
  BlockSparseLinear(const LinearSpec& spec, SparseLayout layout, Backend& backend)
      : spec_(spec),
        backend_(backend),
        layout_(backend.PrepareLayout(layout)),
        bias_(spec.WithoutPadding(), backend) {}

  std::vector<Parameter> Parameters() const override {
    std::vector<Parameter> parameters = {WeightParameter(spec_, layout_->layout())};
    bias_.AppendParameter(&parameters);
    return parameters;
  }

  void Bind(std::span<const BoundParameter> parameters, TensorView scratch) override {
    weight_ = parameters[0];
    bias_.Bind(parameters);
  }

  void Materialize(Stream& stream) override {}

  void Forward(ConstTensorView x, TensorView y, TensorView, const ProductEpilogue& epilogue,
               Stream& stream) override {
    backend_.Spmm({.weight = layout_.get(),
                   .values = weight_.values,
                   .x = x,
                   .y = y,
                   .bias = bias_.values(),
                   .epilogue = epilogue},
                  stream);
  }

  BoundParameter ReleaseBiasGrad() override { return bias_.Release(); }

  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations&,
                const InputGrad& input_grad, Stream& stream) override {
    backend_.Sddmm({.weight = layout_.get(),
                    .dy = dy,
                    .x = x,
                    .dvalues = weight_.grads,
                    .accumulate = weight_.adds(),
                    .dy_sums = bias_.grads(),
                    .accumulate_sums = bias_.adds()},
                   stream);
    if (input_grad.dx.empty()) return;
    backend_.SpmmTransposed({.weight = layout_.get(),
                             .values = weight_.values,
                             .dy = dy,
                             .dx = input_grad.dx,
                             .accumulate = input_grad.accumulate,
                             .epilogue = input_grad.epilogue()},
                            stream);
  }

  std::optional<BlockedProduct> blocked_product() const override {
    return BlockedProduct{layout_.get(), weight_, bias_.bound()};
  }

  LinearFlops flops() const override {
    const SparseLayout& layout = layout_->layout();
    return {2.0 * static_cast<double>(layout.logical_count()),
            2.0 * static_cast<double>(layout.nonzero_count()),
            2.0 * static_cast<double>(layout.stored_count())};
  }
  LinearMemory memory(DType compute_dtype) const override {
    return {.layout_bytes = static_cast<int64_t>(layout_->bytes())};
  }

 private:
  const LinearSpec spec_;
  Backend& backend_;
  std::unique_ptr<PreparedLayout> layout_;
  LinearBias bias_;
  BoundParameter weight_;  // [stored blocks * block_out * block_in]
};

std::string Shape(int64_t rows, int64_t cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

Status Validate(const LinearSpec& linear, const SparsitySpec& sparsity) {
  const std::string weight = linear.name + ".weight [" + Shape(linear.out, linear.in) + "]";
  const std::string block = Shape(sparsity.block_out, sparsity.block_in);
  if (sparsity.block_out < 1 || sparsity.block_in < 1) {
    return InvalidInput(weight + ": blocks of " + block + "; both sides must be at least 1");
  }
  if (sparsity.block_out > linear.out || sparsity.block_in > linear.in) {
    return InvalidInput(weight + ": blocks of " + block + " are larger than the weight; choose " +
                        "smaller ones or exclude it");
  }
  const int64_t blocks =
      CeilDiv(linear.out, sparsity.block_out) * CeilDiv(linear.in, sparsity.block_in);
  if (sparsity.sparsity < 0 || (1.0 - sparsity.sparsity) * static_cast<double>(blocks) < 0.5) {
    return InvalidInput(weight + ": sparsity " + std::to_string(sparsity.sparsity) +
                        " leaves none of its " + std::to_string(blocks) + " blocks of " + block +
                        "; lower it or choose smaller blocks");
  }
  return OkStatus();
}

SparseLayout DrawLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  return RandomBalancedBlocks(linear.out, linear.in, static_cast<int>(sparsity.block_out),
                              static_cast<int>(sparsity.block_in), 1.0 - sparsity.sparsity, seed,
                              linear.name + ".weight");
}

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec& sparsity,
                               SparseLayout layout, Backend& backend) {
  CHECK(layout.kind() == LayoutKind::kBlocked) << linear.name << ": " << NameOf(layout.kind());
  return std::make_unique<BlockSparseLinear>(linear, std::move(layout), backend);
}

}  // namespace

const Parameterisation kBlockSparseParameterisation = {.name = "block_sparse",
                                                       .summary = "blocks stored and multiplied",
                                                       .computes_stored = true,
                                                       .validate = &Validate,
                                                       .draw_layout = &DrawLayout,
                                                       .create = &Create,
                                                       .units = StoredUnits::kBlocks,
                                                       .movable = true};

}  // namespace filigree
