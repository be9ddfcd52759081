// Blocked products through the dense weight: scattered into the workspace, multiplied by cuBLASLt,
// or computed there densely and gathered. Serves every shape and card, at the dense product's cost.
#include "kernels/cuda/sparse_variants.h"

namespace filigree {
namespace {

TensorView DenseScratch(CudaBackend& backend, const SparseLayout& layout, DType dtype) {
  std::byte* memory = backend.Workspace(layout.logical_count() * SizeOf(dtype));
  return TensorView(memory, dtype, {layout.out(), layout.in()});
}

}  // namespace

void MultiplyDense(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  const TensorView dense = DenseScratch(backend, product.layout(), DType::kBF16);
  backend.ScatterStored({.weight = product.weight, .values = product.values, .dense = dense},
                        stream);
  backend.MatMul({.a = product.in,
                  .b = dense,
                  .out = product.out,
                  .transpose_b = !product.transposed,
                  .accumulate = product.accumulate,
                  .bias = product.bias,
                  .epilogue = product.epilogue},
                 stream);
}

void SampleDense(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  const TensorView dense = DenseScratch(backend, args.weight->layout(), DType::kF32);
  backend.MatMul({.a = args.dy, .b = args.x, .out = dense, .transpose_a = true}, stream);
  backend.GatherStored({.weight = args.weight,
                        .dense = dense,
                        .values = args.dvalues,
                        .accumulate = args.accumulate},
                       stream);
}

}  // namespace filigree
