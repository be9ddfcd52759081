// The Hopper kernels as rows of the variant tables: what they take, their schedules, and what is
// left to do after them.
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/sparse_variants.h"
#include "kernels/cuda/spmm_bsr_sm90.h"

namespace filigree {
namespace {

// Fewer tokens fill too little of a tile of 256, and generation, which lengthens its sequence token
// by token, would build a schedule for each length.
constexpr int64_t kMinTokens = 128;

const __nv_bfloat16* Data(ConstTensorView view) {
  return static_cast<const __nv_bfloat16*>(view.data());
}
__nv_bfloat16* Data(TensorView view) { return static_cast<__nv_bfloat16*>(view.data()); }

BlockShape BlockOf(const SparseLayout& layout) {
  return {.rows = layout.block_out(), .cols = layout.block_in()};
}

// The copy engine needs rows that begin at multiples of 16 bytes.
bool IsAligned(ConstTensorView view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.row_stride() % 8 == 0;
}

bool IsHopper(const CudaDevice& device) { return device.compute_capability() == 90; }

// What the kernel does itself; the rest is left to FinishProduct.
SpmmFinish FinishOf(const BlockProduct& product) {
  const ProductEpilogue& epilogue = product.epilogue;
  const bool residual = !epilogue.residual.empty(), gelu = !epilogue.pre_activation.empty();
  const bool dgelu = !epilogue.gelu_input.empty();
  if (product.accumulate || residual + gelu + dgelu != 1) return SpmmFinish::kStore;
  if (residual && !product.transposed && IsAligned(epilogue.residual)) return SpmmFinish::kResidual;
  if (gelu && !product.transposed && IsAligned(epilogue.pre_activation)) return SpmmFinish::kGelu;
  if (dgelu && product.transposed && IsAligned(epilogue.gelu_input)) {
    return SpmmFinish::kGeluBackward;
  }
  return SpmmFinish::kStore;
}

SpmmDesc DescOf(const BlockProduct& product) {
  const SparseLayout& layout = product.layout();
  return {.block = BlockOf(layout),
          .transposed = product.transposed,
          .tokens = product.tokens(),
          .out_features = layout.out(),
          .in_features = layout.in(),
          .block_count = layout.block_count(),
          .stored_rows = product.weight->value_count() / layout.block_in(),
          .finish = FinishOf(product)};
}

// Runs the kernel with its output in `out`.
void Launch(const BlockProduct& product, const SpmmDesc& desc, TensorView out,
            cudaStream_t stream) {
  const CudaDevice& device = product.weight->device();
  const SpmmConfig config = ConfigSpmmBsrSm90(desc, device.multiprocessors());
  const DeviceSpmmSchedule& schedule =
      product.weight->SpmmScheduleFor(desc.transposed, desc.tokens, config.tiling);
  SpmmKernelArgs args = {.values = Data(product.values),
                         .input = Data(product.in),
                         .output = Data(out),
                         .input_stride = product.in.row_stride(),
                         .output_stride = out.row_stride(),
                         .steps = schedule.steps,
                         .tiles = schedule.tiles,
                         .worker_begin = schedule.worker_begin};
  const ProductEpilogue& epilogue = product.epilogue;
  if (!product.bias.empty()) args.bias = Data(product.bias);
  if (desc.finish == SpmmFinish::kResidual || desc.finish == SpmmFinish::kGeluBackward) {
    const ConstTensorView operand =
        desc.finish == SpmmFinish::kResidual ? epilogue.residual : epilogue.gelu_input;
    args.operand = Data(operand);
    args.operand_stride = operand.row_stride();
  }
  if (desc.finish == SpmmFinish::kGelu) {
    args.pre_activation = Data(epilogue.pre_activation);
    args.pre_activation_stride = epilogue.pre_activation.row_stride();
  }
  LaunchSpmmBsrSm90(desc, config, args, stream);
}

}  // namespace

bool GainsByJoiningSm90(const SparseLayout& layout, const CudaDevice& device) {
  return IsHopper(device) && layout.block_count() > 0 &&
         CanImplementSpmmBsrSm90({.block = BlockOf(layout),
                                  .tokens = kMinTokens,
                                  .out_features = layout.out(),
                                  .in_features = layout.in()});
}

bool CanMultiplySm90(const BlockProduct& product) {
  if (!IsHopper(product.weight->device()) || product.tokens() < kMinTokens) return false;
  if (product.layout().kind() != LayoutKind::kBlocked || product.layout().block_count() == 0) {
    return false;
  }
  const bool bias_fits =
      product.bias.empty() || reinterpret_cast<uintptr_t>(product.bias.data()) % 16 == 0;
  return CanImplementSpmmBsrSm90(DescOf(product)) && IsAligned(product.values) &&
         IsAligned(product.in) && IsAligned(FinishInput(product.out, product.epilogue)) &&
         IsAligned(product.out) && bias_fits;
}

void MultiplySm90(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  const SpmmDesc desc = DescOf(product);
  const cudaStream_t native = NativeStream(stream);
  if (desc.finish != SpmmFinish::kStore) return Launch(product, desc, product.out, native);
  TensorView result = FinishInput(product.out, product.epilogue);
  if (!product.accumulate) {
    Launch(product, desc, result, native);
    return FinishProduct(backend, result, product.out, {}, product.epilogue, stream);
  }
  // The kernel overwrites its output: the sum is made from a product beside it.
  std::byte* memory = backend.Workspace(result.bytes());
  const TensorView beside(memory, DType::kBF16, {result.rows(), result.cols()});
  Launch(product, desc, beside, native);
  FinishProduct(backend, beside, result, {}, {.residual = result}, stream);
  FinishProduct(backend, result, product.out, {}, product.epilogue, stream);
}

bool CanSampleSm90(const SddmmArgs& args) {
  const CudaPreparedLayout& weight = Prepared(args.weight);
  const SparseLayout& layout = weight.layout();
  if (!IsHopper(weight.device()) || layout.kind() != LayoutKind::kBlocked) return false;
  if (layout.block_count() == 0 || args.x.rows() < kMinTokens) return false;
  const SddmmDesc desc = {.block = BlockOf(layout),
                          .tokens = args.x.rows(),
                          .out_features = layout.out(),
                          .in_features = layout.in()};
  return CanImplementSddmmBsrSm90(desc) && args.dvalues.dtype() == DType::kF32 &&
         reinterpret_cast<uintptr_t>(args.dvalues.data()) % 16 == 0 && IsAligned(args.x) &&
         IsAligned(args.dy);
}

void SampleSm90(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  const CudaPreparedLayout& weight = Prepared(args.weight);
  const SparseLayout& layout = weight.layout();
  const SddmmDesc desc = {.block = BlockOf(layout),
                          .tokens = args.x.rows(),
                          .out_features = layout.out(),
                          .in_features = layout.in()};
  const SddmmConfig config = ConfigSddmmBsrSm90(desc, weight.device().multiprocessors());
  const DeviceSddmmSchedule& schedule = weight.SddmmScheduleFor(desc.tokens, config.workers);
  std::byte* partials = backend.Workspace(SddmmPartialBytes(schedule.slot_count));
  const SddmmKernelArgs kernel = {.output_grad = Data(args.dy),
                                  .input = Data(args.x),
                                  .gradient = args.dvalues.As<float>(),
                                  .partials = reinterpret_cast<float*>(partials),
                                  .output_grad_stride = args.dy.row_stride(),
                                  .input_stride = args.x.row_stride(),
                                  .accumulate = true,
                                  .orientation = schedule.orientation,
                                  .units = schedule.units,
                                  .segments = schedule.segments,
                                  .worker_begin = schedule.worker_begin,
                                  .reductions = schedule.reductions,
                                  .reduction_count = schedule.reduction_count};
  LaunchSddmmBsrSm90(desc, config, kernel, NativeStream(stream));
}

}  // namespace filigree
