// What distinguishes the model families, and which linears a decoder layer has.
#pragma once

#include <vector>

#include "trainer/linear/linear.h"
#include "trainer/model/norm.h"
#include "trainer/spec.h"

namespace filigree {

// One row a family: pre-norm decoders that differ in these four things.
struct FamilyTraits {
  ModelFamily family;
  NormKind norm;
  bool rope;  // rotate-half RoPE on queries and keys; else learned positions added to the embedding
  bool gated;   // SwiGLU over gate and up; else GELU over up
  bool biases;  // on every linear
};
const FamilyTraits& TraitsOf(ModelFamily family);

// The linears of layer `layer`; `gate` only where the family is gated.
struct LayerLinears {
  std::vector<LinearSpec> qkv;      // attention.q, .k, .v: one input
  std::vector<LinearSpec> o;        // attention.o, to the residual stream
  std::vector<LinearSpec> gate_up;  // mlp.gate, mlp.up, or mlp.up alone: one input
  std::vector<LinearSpec> down;     // mlp.down, to the residual stream
};
// The feed-forward's width is padded to multiples of `row_alignment` (Device::row_alignment).
LayerLinears LinearsOfLayer(const ModelSpec& spec, int64_t layer, int64_t row_alignment = 1);

}  // namespace filigree
