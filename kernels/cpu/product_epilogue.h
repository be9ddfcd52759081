// ProductEpilogue on the CPU: passes over the finished product.
#pragma once

#include "kernels/cpu/cpu_backend.h"
#include "kernels/gelu_epilogue.h"
#include "kernels/swiglu_epilogue.h"

namespace filigree {

// What remains to be done once the result is in epilogue.ResultIn(out).
inline void FinishProduct(CpuBackend& backend, TensorView out, const ProductEpilogue& epilogue,
                          Stream& stream) {
  const TensorView result = epilogue.ResultIn(out);
  if (!epilogue.residual.empty()) {
    backend.Add({.a = result, .b = epilogue.residual, .out = result}, stream);
  }
  ApplyGelu(backend, out, epilogue, stream);
  ApplySwiGluBackward(backend, out, epilogue, stream);
  ApplySwiGlu(backend, out, epilogue, stream);
  if (!epilogue.column_sums.empty()) {
    backend.ColumnSum(
        {.in = out, .out = epilogue.column_sums, .accumulate = epilogue.accumulate_sums}, stream);
  }
}

}  // namespace filigree
