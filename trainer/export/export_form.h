// What a model is exported as: transformers' classes have one size for all layers, and an RMSNorm
// that divides by its width.
//
// A pruned model may have layers of different sizes, and a norm that still divides by the width D0
// from before channels of its stem went. The second is folded, exactly: with D channels left,
//   x gain / sqrt(sum x^2 / D0 + epsilon) = x gain' / sqrt(sum x^2 / D + epsilon'),
//   gain' = gain sqrt(D0 / D),  epsilon' = epsilon D0 / D.
// The first is refused, or padded: heads and feed-forward channels of zeros, which compute nothing,
// fill each layer up to one size.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

struct ExportForm {
  ModelSpec model;         // of one size, dividing by its width
  double gain_factor = 1;  // of every RMSNorm's gain
};

// The form of `model`; with `padded` the smallest that holds every layer. InvalidInput, with the
// reason and the mend, where transformers' class has no such model: layers that differ, heads that
// do not divide the width (llama) or make it up (GPT-2), query groups that differ between layers.
StatusOr<ExportForm> FormOf(const ModelSpec& model, bool padded);

// `values` of `shape` ([n] or [out, in]) at the beginning of zeros of the shape `padded`, which is
// at least as large. T is float (values) or uint8_t (masks).
template <typename T>
std::vector<T> PadTo(const std::vector<int64_t>& padded, const std::vector<int64_t>& shape,
                     std::vector<T> values);

}  // namespace filigree
