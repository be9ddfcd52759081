// The mma.sync kernels as rows of the variant tables: every card since Ampere.
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/sddmm_bsr_mma.h"
#include "kernels/cuda/sparse_variants.h"
#include "kernels/cuda/spmm_bsr_mma.h"

namespace filigree {
namespace {

const __nv_bfloat16* Data(ConstTensorView view) {
  return static_cast<const __nv_bfloat16*>(view.data());
}

bool IsAligned(ConstTensorView view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.row_stride() % 8 == 0;
}

BlockShape BlockOf(const SparseLayout& layout) {
  return {.rows = layout.block_out(), .cols = layout.block_in()};
}

// A blocked layout of its own (joined ones go part by part), on a card that has the instructions.
bool IsServed(const CudaPreparedLayout& weight) {
  return weight.device().compute_capability() >= 80 && weight.parts().empty() &&
         weight.layout().kind() == LayoutKind::kBlocked;
}

SpmmMmaDesc DescOf(const BlockProduct& product) {
  return {.block = BlockOf(product.layout()),
          .transposed = product.transposed,
          .tokens = product.tokens(),
          .out_features = product.layout().out(),
          .in_features = product.layout().in()};
}

SddmmMmaDesc DescOf(const SddmmArgs& args) {
  const SparseLayout& layout = args.weight->layout();
  return {.block = BlockOf(layout),
          .tokens = args.x.rows(),
          .out_features = layout.out(),
          .in_features = layout.in(),
          .block_count = layout.block_count(),
          .gradient_dtype = args.dvalues.dtype()};
}

}  // namespace

bool CanMultiplyMma(const BlockProduct& product) {
  return IsServed(*product.weight) && CanImplementSpmmBsrMma(DescOf(product)) &&
         IsAligned(product.values) && IsAligned(product.in) && IsAligned(product.out) &&
         IsAligned(product.epilogue.ResultIn(product.out)) &&
         (product.epilogue.residual.empty() || IsAligned(product.epilogue.residual)) &&
         (product.bias.empty() || IsAligned(product.bias.Reshape({1, product.bias.size()})));
}

void MultiplyMma(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  const SpmmMmaDesc desc = DescOf(product);
  const BlockIndex& index = product.weight->block_index();
  const TensorView result = product.epilogue.ResultIn(product.out);
  ProductEpilogue rest = product.epilogue;
  SpmmMmaArgs args = {.values = Data(product.values),
                      .offsets = product.transposed ? index.column_offsets : index.row_offsets,
                      .panels = product.transposed ? index.rows : index.columns,
                      .slots = product.transposed ? index.slots : nullptr,
                      .input = Data(product.in),
                      .input_stride = product.in.row_stride(),
                      .output = static_cast<__nv_bfloat16*>(result.data()),
                      .output_stride = result.row_stride()};
  if (!product.bias.empty()) args.bias = Data(product.bias);
  const ConstTensorView addend = product.accumulate ? ConstTensorView(result) : rest.residual;
  if (!addend.empty()) {
    args.addend = Data(addend);
    args.addend_stride = addend.row_stride();
    if (!product.accumulate) rest.residual = {};
  }
  LaunchSpmmBsrMma(desc, args, NativeStream(stream));
  FinishProduct(backend, result, product.out, {}, rest, stream);
}

bool CanSampleMma(const SddmmArgs& args) {
  return IsServed(Prepared(args.weight)) && CanImplementSddmmBsrMma(DescOf(args)) &&
         reinterpret_cast<uintptr_t>(args.dvalues.data()) % 16 == 0 && IsAligned(args.x) &&
         IsAligned(args.dy);
}

void SampleMma(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  const CudaPreparedLayout& weight = Prepared(args.weight);
  if (args.dvalues.size() == 0) return;
  const SddmmMmaDesc desc = DescOf(args);
  const int multiprocessors = weight.device().multiprocessors();
  const BlockIndex& index = weight.block_index();
  const SddmmMmaArgs kernel = {
      .row_offsets = index.row_offsets,
      .columns = index.columns,
      .output_grad = Data(args.dy),
      .output_grad_stride = args.dy.row_stride(),
      .input = Data(args.x),
      .input_stride = args.x.row_stride(),
      .gradient = args.dvalues.data(),
      .accumulate = args.accumulate,
      .workspace = backend.Workspace(SddmmMmaWorkspaceBytes(desc, multiprocessors))};
  LaunchSddmmBsrMma(desc, multiprocessors, kernel, NativeStream(stream));
}

}  // namespace filigree
