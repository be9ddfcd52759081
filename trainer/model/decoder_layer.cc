#include "trainer/model/decoder_layer.h"

#include <algorithm>

namespace filigree {
namespace {

std::string NormName(int64_t layer, const char* name) {
  return "layers." + std::to_string(layer) + "." + name;
}

LayerLinears Linears(const ModelSpec& spec, int64_t layer, Backend& backend) {
  return LinearsOfLayer(spec, layer, backend.device().row_alignment());
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelSpec& spec, int64_t layer,
                           const std::vector<SparsitySpec>& sparsity, uint64_t seed,
                           const std::map<std::string, SparseLayout>& layouts, Backend& backend,
                           ParameterTable& table)
    : spec_(spec),
      shape_(spec.ShapeOf(layer)),
      traits_(TraitsOf(spec.family)),
      backend_(backend),
      attention_norm_(spec, NormName(layer, "attention_norm"), backend, table),
      qkv_(Linears(spec, layer, backend).qkv, sparsity, seed, layouts, backend, table),
      o_(Linears(spec, layer, backend).o, sparsity, seed, layouts, backend, table),
      mlp_norm_(spec, NormName(layer, "mlp_norm"), backend, table),
      gate_up_(Linears(spec, layer, backend).gate_up, sparsity, seed, layouts, backend, table),
      down_(Linears(spec, layer, backend).down, sparsity, seed, layouts, backend, table) {}

std::vector<TableLinear*> DecoderLayer::linears() { return {&qkv_, &o_, &gate_up_, &down_}; }

std::vector<const Linear*> DecoderLayer::parts() const {
  std::vector<const Linear*> parts;
  for (const TableLinear* linear : {&qkv_, &o_, &gate_up_, &down_}) {
    for (const auto& part : linear->group().parts()) parts.push_back(part.get());
  }
  return parts;
}

int64_t DecoderLayer::inner_width() const {
  int64_t width = 0;
  for (const TableLinear* linear : {&qkv_, &o_, &gate_up_, &down_}) {
    width += linear->group().inner_width();
  }
  return width;
}

int64_t DecoderLayer::inner_grad_width() const {
  int64_t width = 0;
  for (const TableLinear* linear : {&qkv_, &o_, &gate_up_, &down_}) {
    width = std::max(width, linear->group().inner_width());
  }
  return width;
}

TensorView DecoderLayer::InnerOf(const TableLinear& linear, TensorView inner) const {
  const int64_t width = linear.group().inner_width();
  if (width == 0) return {};
  int64_t begin = 0;
  for (const TableLinear* before : {&qkv_, &o_, &gate_up_, &down_}) {
    if (before == &linear) break;
    begin += before->group().inner_width();
  }
  return inner.Cols(begin, width);
}

InnerActivations DecoderLayer::InnerOf(const TableLinear& linear, const LayerActivations& a,
                                       const LayerGradients& g) const {
  const int64_t width = linear.group().inner_width();
  if (width == 0) return {};
  return {InnerOf(linear, a.inner), g.inner.Cols(0, width)};
}

void DecoderLayer::LayOut(ActivationArena& arena, int64_t tokens, Part part,
                          LayerActivations* a) const {
  if (part != Part::kRecomputed) {
    a->attention_statistics = attention_norm_.LayOut(arena, tokens);
    a->mlp_statistics = mlp_norm_.LayOut(arena, tokens);
    a->qkv = arena.Matrix(tokens, qkv_.group().out());
    a->attention_output = arena.Matrix(tokens, shape_.heads * spec_.head_size);
    a->lse = arena.Statistic(tokens, shape_.heads);
    a->middle = arena.Matrix(tokens, spec_.width);
    const bool codes = spec_.gelu_derivative_bits == 8;
    a->gate_up =
        arena.Matrix(tokens, gate_up_.group().out(), codes ? DType::kU8 : arena.dtype());
  }
  if (part != Part::kKept) {
    a->attention_input = arena.Matrix(tokens, spec_.width);
    a->mlp_input = arena.Matrix(tokens, spec_.width);
    a->hidden = arena.Matrix(tokens, hidden_width());
  }
}

LayerGradients DecoderLayer::LayOutGradients(ActivationArena& arena, int64_t tokens) const {
  LayerGradients g;
  g.normed = arena.Matrix(tokens, spec_.width);
  g.qkv = arena.Matrix(tokens, qkv_.group().out());
  g.attention_output = arena.Matrix(tokens, shape_.heads * spec_.head_size);
  g.gate_up = arena.Matrix(tokens, gate_up_.group().out());
  return g;
}

int64_t DecoderLayer::hidden_width() const {
  return AlignUp(shape_.feed_forward, backend_.device().row_alignment());
}

void DecoderLayer::Rope(TensorView qkv, int64_t seq_len, bool inverse, Stream& stream) {
  if (!traits_.rope) return;
  const int64_t heads[] = {shape_.heads, shape_.kv_heads};
  for (int part = 0; part < 2; ++part) {
    backend_.Rope({.x = qkv_.group().Part(qkv, part),
                   .seq_len = seq_len,
                   .heads = heads[part],
                   .theta = spec_.rope_theta,
                   .inverse = inverse},
                  stream);
  }
}

void DecoderLayer::Attend(const LayerActivations& a, int64_t seq_len, Stream& stream) {
  qkv_.Forward(a.attention_input, a.qkv, InnerOf(qkv_, a.inner), {}, stream);
  Rope(a.qkv, seq_len, /*inverse=*/false, stream);
  backend_.Attention({.q = qkv_.group().Part(a.qkv, 0),
                      .k = qkv_.group().Part(a.qkv, 1),
                      .v = qkv_.group().Part(a.qkv, 2),
                      .out = a.attention_output,
                      .lse = a.lse,
                      .seq_len = seq_len,
                      .heads = shape_.heads,
                      .kv_heads = shape_.kv_heads},
                     stream);
}

void DecoderLayer::Activate(const LayerActivations& a, Stream& stream) {
  if (traits_.gated) {
    backend_.SwiGlu({.gate = gate_up_.group().PaddedPart(a.gate_up, 0),
                     .up = gate_up_.group().PaddedPart(a.gate_up, 1),
                     .y = a.hidden,
                     .linear = spec_.gate_activation == GateActivation::kIdentity},
                    stream);
  } else {
    backend_.Gelu({.x = a.gate_up, .y = a.hidden}, stream);
  }
}

void DecoderLayer::Forward(ConstTensorView x, TensorView out, const LayerActivations& a,
                           int64_t seq_len, Stream& stream) {
  attention_norm_.Forward(x, a.attention_input, a.attention_statistics, stream);
  Attend(a, seq_len, stream);
  o_.Forward(a.attention_output, a.middle, InnerOf(o_, a.inner), {.residual = x}, stream);
  mlp_norm_.Forward(a.middle, a.mlp_input, a.mlp_statistics, stream);
  const TensorView inner = InnerOf(gate_up_, a.inner);
  if (traits_.gated) {
    const bool linear = spec_.gate_activation == GateActivation::kIdentity;
    gate_up_.Forward(a.mlp_input, a.gate_up, inner, {.swiglu_output = {a.hidden, linear}}, stream);
  } else {
    gate_up_.Forward(a.mlp_input, a.hidden, inner, {.pre_activation = a.gate_up}, stream);
  }
  down_.Forward(a.hidden, out, InnerOf(down_, a.inner), {.residual = a.middle}, stream);
}

void DecoderLayer::Recompute(ConstTensorView x, const LayerActivations& a, Stream& stream) {
  attention_norm_.Forward(x, a.attention_input, a.attention_statistics, stream);
  mlp_norm_.Forward(a.middle, a.mlp_input, a.mlp_statistics, stream);
  Activate(a, stream);
}

void DecoderLayer::BackwardMlp(TensorView dx, const LayerActivations& a, const LayerGradients& g,
                               Stream& stream) {
  const InnerActivations inner = InnerOf(down_, a, g);
  if (traits_.gated) {
    const LinearGroup& group = gate_up_.group();
    down_.Backward(a.hidden, dx, inner,
                   {.dx = group.PaddedPart(g.gate_up, 0),
                    .swiglu = {.gate = group.PaddedPart(a.gate_up, 0),
                               .up = group.PaddedPart(a.gate_up, 1),
                               .dup = group.PaddedPart(g.gate_up, 1),
                               .linear = spec_.gate_activation == GateActivation::kIdentity}},
                   stream);
  } else {
    down_.Backward(a.hidden, dx, inner,
                   {.dx = g.gate_up,
                    .gelu_input = a.gate_up,
                    .column_sums = up_bias_.grads,
                    .accumulate_sums = up_bias_.adds()},
                   stream);
  }
  gate_up_.Backward(a.mlp_input, g.gate_up, InnerOf(gate_up_, a, g), {.dx = g.normed}, stream);
  mlp_norm_.Backward(a.middle, g.normed, dx, a.mlp_statistics, o_bias_, stream);
}

void DecoderLayer::BackwardAttention(ConstTensorView x, TensorView dx, const LayerActivations& a,
                                     const LayerGradients& g, int64_t seq_len,
                                     const BoundParameter& bias_of_x, Stream& stream) {
  const LinearGroup& group = qkv_.group();
  o_.Backward(a.attention_output, dx, InnerOf(o_, a, g), {.dx = g.attention_output}, stream);
  backend_.AttentionBackward({.q = group.Part(a.qkv, 0),
                              .k = group.Part(a.qkv, 1),
                              .v = group.Part(a.qkv, 2),
                              .out = a.attention_output,
                              .dout = g.attention_output,
                              .lse = a.lse,
                              .dq = group.Part(g.qkv, 0),
                              .dk = group.Part(g.qkv, 1),
                              .dv = group.Part(g.qkv, 2),
                              .seq_len = seq_len,
                              .heads = shape_.heads,
                              .kv_heads = shape_.kv_heads},
                             stream);
  Rope(g.qkv, seq_len, /*inverse=*/true, stream);
  qkv_.Backward(a.attention_input, g.qkv, InnerOf(qkv_, a, g), {.dx = g.normed}, stream);
  attention_norm_.Backward(x, g.normed, dx, a.attention_statistics, bias_of_x, stream);
}

void DecoderLayer::Backward(ConstTensorView x, TensorView dx, const LayerActivations& a,
                            const LayerGradients& g, int64_t seq_len,
                            const BoundParameter& bias_of_x, Stream& stream) {
  BackwardMlp(dx, a, g, stream);
  BackwardAttention(x, dx, a, g, seq_len, bias_of_x, stream);
}

void DecoderLayer::ReleaseBiasGrads() {
  o_bias_ = o_.ReleaseBiasGrad();
  down_bias_ = down_.ReleaseBiasGrad();
  // GELU's gradient comes from the same product as its sums; padding would not fit the bias.
  const bool padded = hidden_width() != spec_.feed_forward;
  if (!traits_.gated && !padded) up_bias_ = gate_up_.ReleaseBiasGrad();
}

}  // namespace filigree
