#include "trainer/model/decoder_spec.h"

#include <cmath>
#include <string>

#include "trainer/model/model.h"

namespace filigree {
namespace {

constexpr FamilyTraits kFamilies[] = {
    {.family = ModelFamily::kLlama,
     .norm = NormKind::kRms,
     .rope = true,
     .gated = true,
     .biases = false},
    {.family = ModelFamily::kGpt2,
     .norm = NormKind::kLayer,
     .rope = false,
     .gated = false,
     .biases = true},
};

}  // namespace

const FamilyTraits& TraitsOf(ModelFamily family) {
  for (const FamilyTraits& row : kFamilies) {
    if (row.family == family) return row;
  }
  CHECK(false) << "family " << static_cast<int>(family);
}

LayerLinears LinearsOfLayer(const ModelSpec& spec, int64_t layer, int64_t row_alignment) {
  const FamilyTraits& traits = TraitsOf(spec.family);
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  // Two matrices a layer add to the residual stream; their sum should not grow with depth.
  const double residual_std = spec.init_std / std::sqrt(2.0 * static_cast<double>(spec.layers));
  const auto linear = [&](const char* name, int64_t out, int64_t in, double init_std) {
    return LinearSpec{prefix + name, out, in, traits.biases, init_std};
  };
  const LayerShape shape = spec.ShapeOf(layer);
  const int64_t q_width = shape.heads * spec.head_size, kv_width = shape.kv_heads * spec.head_size;
  LayerLinears linears;
  linears.qkv = {linear("attention.q", q_width, spec.width, spec.init_std),
                 linear("attention.k", kv_width, spec.width, spec.init_std),
                 linear("attention.v", kv_width, spec.width, spec.init_std)};
  linears.o = {linear("attention.o", spec.width, q_width, residual_std)};
  if (traits.gated) {
    linears.gate_up.push_back(linear("mlp.gate", shape.feed_forward, spec.width, spec.init_std));
  }
  linears.gate_up.push_back(linear("mlp.up", shape.feed_forward, spec.width, spec.init_std));
  for (LinearSpec& widening : linears.gate_up) widening.out_alignment = row_alignment;
  linears.down = {linear("mlp.down", spec.width, shape.feed_forward, residual_std)};
  linears.down[0].in_alignment = row_alignment;
  return linears;
}

std::vector<LinearSpec> LinearSpecs(const ModelSpec& spec) {
  std::vector<LinearSpec> all;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    const LayerLinears linears = LinearsOfLayer(spec, layer);
    for (const auto* group : {&linears.qkv, &linears.o, &linears.gate_up, &linears.down}) {
      all.insert(all.end(), group->begin(), group->end());
    }
  }
  return all;
}

}  // namespace filigree
