// SwiGLU and its gradient of a ProductEpilogue as operations of their own: what every backend does
// where its product cannot.
#pragma once

#include "kernels/backend.h"

namespace filigree {

// The result, everything added, lies in `out`.
inline void ApplySwiGluBackward(DenseOps& backend, TensorView out, const ProductEpilogue& epilogue,
                                Stream& stream) {
  const SwiGluGradient& swiglu = epilogue.swiglu;
  if (swiglu.empty()) return;
  backend.SwiGluBackward({.gate = swiglu.gate,
                          .up = swiglu.up,
                          .dy = out,
                          .dgate = out,
                          .dup = swiglu.dup,
                          .linear = swiglu.linear},
                         stream);
}

// `out` is the output, gate and up side by side.
inline void ApplySwiGlu(DenseOps& backend, ConstTensorView out, const ProductEpilogue& epilogue,
                        Stream& stream) {
  const SwiGluOutput& swiglu = epilogue.swiglu_output;
  if (swiglu.empty()) return;
  const int64_t half = out.cols() / 2;
  backend.SwiGlu({.gate = out.Cols(0, half),
                  .up = out.Cols(half, half),
                  .y = swiglu.y,
                  .linear = swiglu.linear},
                 stream);
}

}  // namespace filigree
