// GELU of a ProductEpilogue as operations of its own, over a result that is stored: what every backend
// does where its product cannot.
#pragma once

#include "kernels/backend.h"

namespace filigree {

// The result, everything added, lies in epilogue.ResultIn(out).
inline void ApplyGelu(DenseOps& backend, TensorView out, const ProductEpilogue& epilogue,
                      Stream& stream) {
  if (!epilogue.pre_activation.empty()) {
    backend.Gelu({.x = epilogue.ResultIn(out),
                  .y = out,
                  .codes = epilogue.makes_codes() ? epilogue.pre_activation : TensorView()},
                 stream);
  }
  if (!epilogue.gelu_input.empty()) {
    backend.GeluBackward({.x = epilogue.gelu_input, .dy = out, .dx = out}, stream);
  }
}

}  // namespace filigree
