// The Hopper kernels as rows of the variant tables: what they take, their schedules, and what is
// left to do after them.
#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cuda/column_partials.h"
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/sparse_variants.h"
#include "kernels/cuda/spmm_bsr_sm90.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {
namespace {

const __nv_bfloat16* Data(ConstTensorView view) {
  return static_cast<const __nv_bfloat16*>(view.data());
}
__nv_bfloat16* Data(TensorView view) { return static_cast<__nv_bfloat16*>(view.data()); }

BlockShape BlockOf(const SparseLayout& layout) {
  return {.rows = layout.block_out(), .cols = layout.block_in()};
}

// The copy engine needs rows that begin at multiples of 16 bytes.
bool IsAligned(ConstTensorView view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 &&
         view.row_stride() * static_cast<int64_t>(SizeOf(view.dtype())) % 16 == 0;
}

bool IsHopper(const CudaDevice& device) { return device.compute_capability() == 90; }

// What the kernel does itself; the rest is left to FinishProduct.
SpmmFinish FinishOf(const BlockProduct& product) {
  const ProductEpilogue& epilogue = product.epilogue;
  const bool residual = !epilogue.residual.empty(), gelu = !epilogue.pre_activation.empty();
  const bool dgelu = !epilogue.gelu_input.empty(), dswiglu = !epilogue.swiglu.empty();
  const bool swiglu_y = !epilogue.swiglu_output.empty();
  if (product.accumulate || residual + gelu + dgelu + dswiglu + swiglu_y != 1) {
    return SpmmFinish::kStore;
  }
  if (residual && !product.transposed && IsAligned(epilogue.residual)) return SpmmFinish::kResidual;
  if (gelu && !product.transposed && IsAligned(epilogue.pre_activation)) {
    return epilogue.makes_codes() ? SpmmFinish::kGeluCode : SpmmFinish::kGelu;
  }
  if (dgelu && product.transposed && IsAligned(epilogue.gelu_input)) {
    return epilogue.gelu_input.dtype() == DType::kU8 ? SpmmFinish::kGeluCodeBackward
                                                     : SpmmFinish::kGeluBackward;
  }
  // Gate and up are made in tiles of the same place.
  if (swiglu_y && !product.transposed && !epilogue.swiglu_output.linear &&
      IsAligned(epilogue.swiglu_output.y) && product.layout().grid_rows() % 2 == 0) {
    return SpmmFinish::kSwiGlu;
  }
  const SwiGluGradient& swiglu = epilogue.swiglu;
  if (dswiglu && product.transposed && !swiglu.linear && IsAligned(swiglu.gate) &&
      IsAligned(swiglu.up) && IsAligned(swiglu.dup)) {
    return SpmmFinish::kSwiGluBackward;
  }
  return SpmmFinish::kStore;
}

// The factors of a product as one operand of the kernel.
struct FactorOperand {
  std::vector<FactorPart> parts;
  int64_t rows = 0, cols = 0;  // of the operand, which begins at the first factor
};

// Nothing where the kernel cannot take them: they must be rows of one matrix, as those of weights
// of equal rank and neighbouring segments are, and as deep as whole steps.
std::optional<FactorOperand> FactorsOf(const BlockProduct& product) {
  FactorOperand operand;
  if (product.low_rank.factors.empty()) return operand;
  const ConstTensorView first = product.low_rank.factors.front();
  operand.cols = first.cols();
  if (!IsAligned(first) || !IsAligned(product.low_rank.inner)) return std::nullopt;
  const auto& joined = product.weight->parts();
  FactorPart part;
  for (size_t i = 0; i < product.low_rank.factors.size(); ++i) {
    const ConstTensorView factor = product.low_rank.factors[i];
    const int64_t begin = Data(factor) - Data(first);
    if (factor.cols() != operand.cols || factor.row_stride() != operand.cols) return std::nullopt;
    if (begin < 0 || begin % operand.cols != 0) return std::nullopt;
    part.row_begin = static_cast<int32_t>(begin / operand.cols);
    part.rank = static_cast<int32_t>(product.transposed ? factor.rows() : factor.cols());
    if (part.rank % kChunk != 0) return std::nullopt;
    part.out_count = static_cast<int32_t>(joined.empty() ? product.layout().out()
                                                         : joined[i].weight->layout().out());
    operand.rows = std::max(operand.rows, begin / operand.cols + factor.rows());
    operand.parts.push_back(part);
    part.out_begin += part.out_count;
    part.inner_begin += part.rank;
  }
  return operand;
}

SpmmDesc DescOf(const BlockProduct& product, const FactorOperand& factors) {
  const SparseLayout& layout = product.layout();
  const int64_t inner_width = factors.parts.empty() ? 0 : product.low_rank.inner.cols();
  return {.block = BlockOf(layout),
          .transposed = product.transposed,
          .tokens = product.tokens(),
          .out_features = layout.out(),
          .in_features = layout.in(),
          .block_count = layout.block_count(),
          .stored_rows = product.weight->value_count() / layout.block_in(),
          .finish = FinishOf(product),
          .factor_depth = product.transposed || inner_width == 0 ? inner_width : factors.cols,
          .inner_width = inner_width,
          .factor_rows = factors.rows,
          .factor_cols = factors.cols};
}

// Runs the kernel with its output in `out`; `sums` as SpmmKernelArgs has them.
void Launch(const BlockProduct& product, const FactorOperand& factors, const SpmmDesc& desc,
            TensorView out, float* sums, cudaStream_t stream) {
  const CudaDevice& device = product.weight->device();
  const SpmmConfig config = ConfigSpmmBsrSm90(desc, device.multiprocessors());
  const DeviceSpmmSchedule& schedule =
      product.weight->SpmmScheduleFor(desc.transposed, desc.tokens, config.tiling, factors.parts);
  SpmmKernelArgs args = {.values = Data(product.values),
                         .input = Data(product.in),
                         .output = Data(out),
                         .input_stride = product.in.row_stride(),
                         .output_stride = out.row_stride(),
                         .sums = sums,
                         .steps = schedule.steps,
                         .tiles = schedule.tiles,
                         .worker_begin = schedule.worker_begin};
  if (desc.factor_depth > 0) {
    args.factors = Data(product.low_rank.factors.front());
    args.inner = Data(product.low_rank.inner);
    args.inner_stride = product.low_rank.inner.row_stride();
  }
  const ProductEpilogue& epilogue = product.epilogue;
  if (!product.bias.empty()) args.bias = Data(product.bias);
  const auto set_operand = [&](ConstTensorView operand) {
    args.operand = Data(operand);
    args.operand_stride = operand.row_stride();
  };
  const auto set_beside = [&](TensorView beside) {
    args.beside = Data(beside);
    args.beside_stride = beside.row_stride();
  };
  if (desc.finish == SpmmFinish::kResidual) set_operand(epilogue.residual);
  if (desc.finish == SpmmFinish::kGelu) set_beside(epilogue.pre_activation);
  if (desc.finish == SpmmFinish::kGeluBackward) set_operand(epilogue.gelu_input);
  if (desc.finish == SpmmFinish::kSwiGlu) set_beside(epilogue.swiglu_output.y);
  if (desc.finish == SpmmFinish::kSwiGluBackward) {
    set_operand(epilogue.swiglu.gate);
    set_beside(epilogue.swiglu.dup);
    args.up = Data(epilogue.swiglu.up);
    args.up_stride = epilogue.swiglu.up.row_stride();
  }
  if (desc.finish == SpmmFinish::kGeluCode || desc.finish == SpmmFinish::kGeluCodeBackward) {
    const ConstTensorView codes =
        desc.transposed ? epilogue.gelu_input : ConstTensorView(epilogue.pre_activation);
    args.codes = static_cast<const uint8_t*>(codes.data());
    args.codes_stride = codes.row_stride();
  }
  LaunchSpmmBsrSm90(desc, config, args, stream);
}

// The product times gelu's derivative, and in the same pass its column sums where they are wanted.
void MultiplyGeluBackward(CudaBackend& backend, const BlockProduct& product,
                          const FactorOperand& factors, const SpmmDesc& desc, cudaStream_t stream) {
  const ProductEpilogue& epilogue = product.epilogue;
  const int64_t rows = SpmmSumRows(desc.tokens), width = desc.output_width();
  float* sums = nullptr;
  if (!epilogue.column_sums.empty()) {
    sums = reinterpret_cast<float*>(backend.Workspace(sizeof(float) * rows * width));
  }
  Launch(product, factors, desc, product.out, sums, stream);
  if (sums == nullptr) return;
  const ColumnTotal total[] = {{epilogue.column_sums, epilogue.accumulate_sums}};
  SumColumnPartials(sums, rows, total, stream);
}

}  // namespace

bool CanMultiplySm90(const BlockProduct& product) {
  if (!IsHopper(product.weight->device()) || product.tokens() < kHopperMinTokens) return false;
  if (product.layout().kind() != LayoutKind::kBlocked || product.layout().block_count() == 0) {
    return false;
  }
  const std::optional<FactorOperand> factors = FactorsOf(product);
  if (!factors) return false;
  const bool bias_fits =
      product.bias.empty() || reinterpret_cast<uintptr_t>(product.bias.data()) % 16 == 0;
  return CanImplementSpmmBsrSm90(DescOf(product, *factors)) && IsAligned(product.values) &&
         IsAligned(product.in) && IsAligned(product.epilogue.ResultIn(product.out)) &&
         IsAligned(product.out) && bias_fits;
}

void MultiplySm90(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  const FactorOperand factors = *FactorsOf(product);
  const SpmmDesc desc = DescOf(product, factors);
  const cudaStream_t native = NativeStream(stream);
  if (desc.finish == SpmmFinish::kGeluBackward || desc.finish == SpmmFinish::kGeluCodeBackward) {
    return MultiplyGeluBackward(backend, product, factors, desc, native);
  }
  if (desc.finish != SpmmFinish::kStore) {
    Launch(product, factors, desc, product.out, nullptr, native);
    return SumColumns(backend, product.out, product.epilogue, stream);
  }
  TensorView result = product.epilogue.ResultIn(product.out);
  if (!product.accumulate) {
    Launch(product, factors, desc, result, nullptr, native);
    return FinishProduct(backend, result, product.out, {}, product.epilogue, stream);
  }
  // The kernel overwrites its output: the sum is made from a product beside it.
  std::byte* memory = backend.Workspace(result.bytes());
  const TensorView beside(memory, DType::kBF16, {result.rows(), result.cols()});
  Launch(product, factors, desc, beside, nullptr, native);
  FinishProduct(backend, beside, result, {}, {.residual = result}, stream);
  FinishProduct(backend, result, product.out, {}, product.epilogue, stream);
}

bool CanSampleSm90(const SddmmArgs& args) {
  const CudaPreparedLayout& weight = Prepared(args.weight);
  const SparseLayout& layout = weight.layout();
  if (!IsHopper(weight.device()) || layout.kind() != LayoutKind::kBlocked) return false;
  if (layout.block_count() == 0 || args.x.rows() < kHopperMinTokens) return false;
  const SddmmDesc desc = {.block = BlockOf(layout),
                          .tokens = args.x.rows(),
                          .out_features = layout.out(),
                          .in_features = layout.in(),
                          .block_count = layout.block_count(),
                          .gradient_dtype = args.dvalues.dtype()};
  return CanImplementSddmmBsrSm90(desc) &&
         reinterpret_cast<uintptr_t>(args.dvalues.data()) % 16 == 0 && IsAligned(args.x) &&
         IsAligned(args.dy);
}

void SampleSm90(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  const CudaPreparedLayout& weight = Prepared(args.weight);
  const SparseLayout& layout = weight.layout();
  const SddmmDesc desc = {.block = BlockOf(layout),
                          .tokens = args.x.rows(),
                          .out_features = layout.out(),
                          .in_features = layout.in(),
                          .block_count = layout.block_count(),
                          .gradient_dtype = args.dvalues.dtype()};
  const SddmmConfig config = ConfigSddmmBsrSm90(desc, weight.device().multiprocessors());
  const SddmmForm form = {.column_sums = !args.dy_sums.empty()};
  const DeviceSddmmSchedule& schedule = weight.SddmmScheduleFor(desc.tokens, config.workers, form);
  // Where X is the slice that is shared, the sums are a pass of their own, which needs the
  // workspace.
  const bool sums = !args.dy_sums.empty() && schedule.sum_begin != nullptr;
  if (!args.dy_sums.empty() && !sums) SumOutputGrad(backend, args, stream);
  const int64_t partial_bytes = SddmmPartialBytes(schedule.slot_count);
  std::byte* partials =
      backend.Workspace(partial_bytes + (sums ? SddmmSumBytes(schedule.segment_count) : 0));
  SddmmKernelArgs kernel = {.output_grad = Data(args.dy),
                            .input = Data(args.x),
                            .gradient = args.dvalues.data(),
                            .partials = reinterpret_cast<float*>(partials),
                            .output_grad_stride = args.dy.row_stride(),
                            .input_stride = args.x.row_stride(),
                            .accumulate = args.accumulate,
                            .units = schedule.units,
                            .segments = schedule.segments,
                            .worker_begin = schedule.worker_begin,
                            .reductions = schedule.reductions,
                            .reduction_count = schedule.reduction_count,
                            .worker_steps = schedule.worker_steps,
                            .paced = schedule.paced,
                            .pace = backend.sddmm_pace(),
                            .arrivals = backend.sddmm_arrivals()};
  if (sums) {
    kernel.sums = args.dy_sums.data();
    kernel.sum_partials = reinterpret_cast<float*>(partials + partial_bytes);
    kernel.accumulate_sums = args.accumulate_sums;
    kernel.sum_begin = schedule.sum_begin;
    kernel.sum_segments = schedule.sum_segments;
  }
  LaunchSddmmBsrSm90(desc, config, kernel, NativeStream(stream));
}

}  // namespace filigree
