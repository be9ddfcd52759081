// SwiGLU's gradient of a ProductEpilogue as an operation of its own: what every backend does where
// its product cannot.
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

}  // namespace filigree
