// Blocked products: which kernel serves which call.
#include <algorithm>
#include <array>
#include <string>

#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/sparse_variants.h"
#include "kernels/cuda/trace.h"
#include "kernels/low_rank_term.h"

namespace filigree {
namespace {

bool Always(const BlockProduct&) { return true; }
bool AlwaysSample(const SddmmArgs&) { return true; }

std::string ShapeText(const SparseLayout& layout, int64_t tokens) {
  return std::to_string(layout.out()) + "x" + std::to_string(layout.in()) + " in " +
         std::to_string(layout.block_count()) + " blocks of " + std::to_string(layout.block_out()) +
         "x" + std::to_string(layout.block_in()) + ", " + std::to_string(tokens) + " tokens";
}

void CheckMatrix(ConstTensorView view, int64_t rows, int64_t cols, const char* name) {
  CHECK(view.rows() == rows && view.cols() == cols)
      << name << " is [" << view.rows() << ", " << view.cols() << "], not [" << rows << ", " << cols
      << "]";
  CHECK(view.dtype() == DType::kBF16) << name << " holds " << NameOf(view.dtype());
}

// One factor for the weight, or for each of its parts, and inner as wide as all of them.
void CheckLowRank(const BlockProduct& product) {
  const LowRankTerm& term = product.low_rank;
  if (term.factors.empty()) return;
  const auto& parts = product.weight->parts();
  CHECK_EQ(term.factors.size(), std::max<size_t>(parts.size(), 1));
  int64_t width = 0;
  for (size_t i = 0; i < term.factors.size(); ++i) {
    const ConstTensorView factor = term.factors[i];
    const int64_t out = parts.empty() ? product.layout().out() : parts[i].weight->layout().out();
    const int64_t rank = product.transposed ? factor.rows() : factor.cols();
    product.transposed ? CheckMatrix(factor, rank, product.layout().in(), "a factor")
                       : CheckMatrix(factor, out, rank, "a factor");
    width += rank;
  }
  CheckMatrix(term.inner, product.tokens(), width, "inner");
}

void Multiply(CudaBackend& backend, const char* operation, const BlockProduct& product,
              Stream& stream) {
  const SparseLayout& layout = product.layout();
  const int64_t tokens = product.tokens();
  CHECK_EQ(product.values.size(), product.weight->value_count());
  CheckMatrix(product.in, tokens, product.transposed ? layout.out() : layout.in(), "the input");
  CheckMatrix(product.out, tokens, product.transposed ? layout.in() : layout.out(), "the output");
  CheckFinish(product.out, product.bias, product.epilogue);
  CheckLowRank(product);
  if (tokens == 0) return SumColumns(backend, product.out, product.epilogue, stream);
  for (const BlockProductVariant& variant : BlockProductVariants()) {
    if (!variant.can_implement(product)) continue;
    if (TraceKernels()) TraceChoice(operation, ShapeText(layout, tokens), variant.name);
    return variant.launch(backend, product, stream);
  }
}

}  // namespace

bool HasLowRankTerm(const BlockProduct& product) { return !product.low_rank.factors.empty(); }

void MultiplyThenFactors(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  if (product.transposed) {
    return SpmmTransposedThenFactors(backend,
                                     {.weight = product.weight,
                                      .values = product.values,
                                      .dy = product.in,
                                      .dx = product.out,
                                      .accumulate = product.accumulate,
                                      .epilogue = product.epilogue,
                                      .low_rank = product.low_rank},
                                     stream);
  }
  SpmmThenFactors(backend,
                  {.weight = product.weight,
                   .values = product.values,
                   .x = product.in,
                   .y = product.out,
                   .bias = product.bias,
                   .epilogue = product.epilogue,
                   .low_rank = product.low_rank},
                  stream);
}

std::span<const BlockProductVariant> BlockProductVariants() {
  static constexpr std::array kVariants = {
      BlockProductVariant{"spmm_bsr_sm90", &CanMultiplySm90, &MultiplySm90},
      BlockProductVariant{"factors apart", &HasLowRankTerm, &MultiplyThenFactors},
      BlockProductVariant{"part by part", &CanMultiplyParts, &MultiplyParts},
      BlockProductVariant{"spmm_bsr_mma", &CanMultiplyMma, &MultiplyMma},
      BlockProductVariant{"dense", &Always, &MultiplyDense},
  };
  return kVariants;
}

std::span<const BlockGradVariant> BlockGradVariants() {
  static constexpr std::array kVariants = {
      BlockGradVariant{"sddmm_bsr_sm90", &CanSampleSm90, &SampleSm90, /*sums_dy=*/true},
      BlockGradVariant{"part by part", &CanSampleParts, &SampleParts},
      BlockGradVariant{"sddmm_bsr_mma", &CanSampleMma, &SampleMma},
      BlockGradVariant{"dense", &AlwaysSample, &SampleDense},
  };
  return kVariants;
}

void SumOutputGrad(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  if (args.dy_sums.empty()) return;
  backend.ColumnSum({.in = args.dy, .out = args.dy_sums, .accumulate = args.accumulate_sums},
                    stream);
}

std::unique_ptr<PreparedLayout> CudaBackend::PrepareLayout(const SparseLayout& layout) {
  return std::make_unique<CudaPreparedLayout>(indices_.Of(layout), device_);
}

double CudaBackend::BlockedFlopCost(const SparseLayout& layout) const {
  return GpuBlockedFlopCost(layout);
}

void CudaBackend::Spmm(const SpmmArgs& args, Stream& stream) {
  Multiply(*this, "spmm",
           {.weight = &Prepared(args.weight),
            .values = args.values,
            .in = args.x,
            .out = args.y,
            .bias = args.bias,
            .epilogue = args.epilogue,
            .low_rank = args.low_rank},
           stream);
}

void CudaBackend::SpmmTransposed(const SpmmTransposedArgs& args, Stream& stream) {
  Multiply(*this, "spmm transposed",
           {.weight = &Prepared(args.weight),
            .transposed = true,
            .accumulate = args.accumulate,
            .values = args.values,
            .in = args.dy,
            .out = args.dx,
            .epilogue = args.epilogue,
            .low_rank = args.low_rank},
           stream);
}

void CudaBackend::Sddmm(const SddmmArgs& args, Stream& stream) {
  const SparseLayout& layout = args.weight->layout();
  const int64_t tokens = args.x.rows();
  CheckMatrix(args.x, tokens, layout.in(), "x");
  CheckMatrix(args.dy, tokens, layout.out(), "dy");
  CHECK_EQ(args.dvalues.size(), Prepared(args.weight).value_count());
  CHECK(args.dy_sums.empty() || args.dy_sums.size() == layout.out())
      << args.dy_sums.size() << " sums of " << layout.out() << " columns";
  if (tokens == 0) SumOutputGrad(*this, args, stream);
  if (tokens == 0 && args.accumulate) return;
  if (tokens == 0 && Prepared(args.weight).parts().empty()) {
    return device_.ZeroAsync(args.dvalues, stream);
  }
  for (const BlockGradVariant& variant : BlockGradVariants()) {
    if (!variant.can_implement(args)) continue;
    if (TraceKernels()) TraceChoice("sddmm", ShapeText(layout, tokens), variant.name);
    if (!variant.sums_dy && tokens > 0) SumOutputGrad(*this, args, stream);
    return variant.launch(*this, args, stream);
  }
}

}  // namespace filigree
