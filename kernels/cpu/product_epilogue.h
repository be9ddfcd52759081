// ProductEpilogue on the CPU: passes over the finished product.
#pragma once

#include "kernels/cpu/cpu_backend.h"
#include "kernels/swiglu_epilogue.h"

namespace filigree {

// Where a product with this epilogue puts its result.
inline TensorView ProductResult(TensorView out, const ProductEpilogue& epilogue) {
  return epilogue.pre_activation.empty() ? out : epilogue.pre_activation;
}

// What remains to be done once the result is there.
inline void FinishProduct(CpuBackend& backend, TensorView out, const ProductEpilogue& epilogue,
                          Stream& stream) {
  const TensorView result = ProductResult(out, epilogue);
  if (!epilogue.residual.empty()) {
    backend.Add({.a = result, .b = epilogue.residual, .out = result}, stream);
  }
  if (!epilogue.pre_activation.empty()) backend.Gelu({.x = result, .y = out}, stream);
  if (!epilogue.gelu_input.empty()) {
    backend.GeluBackward({.x = epilogue.gelu_input, .dy = out, .dx = out}, stream);
  }
  ApplySwiGluBackward(backend, out, epilogue, stream);
  if (!epilogue.column_sums.empty()) {
    backend.ColumnSum(
        {.in = out, .out = epilogue.column_sums, .accumulate = epilogue.accumulate_sums}, stream);
  }
}

}  // namespace filigree
