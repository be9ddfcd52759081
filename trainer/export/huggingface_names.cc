#include "trainer/export/huggingface_names.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// '#' stands for the layer. Rows with the same name on the right are stacked in the order given.
// `shape`: V vocabulary, P positions, D width, A heads x head size, K key-value heads x head size,
// F feed-forward.
struct NameRow {
  std::string_view ours;
  std::string_view theirs;
  std::string_view shape;
  bool transposed = false;
};

constexpr NameRow kLlamaRows[] = {
    {"embedding.weight", "model.embed_tokens.weight", "VD"},
    {"layers.#.attention_norm.weight", "model.layers.#.input_layernorm.weight", "D"},
    {"layers.#.attention.q.weight", "model.layers.#.self_attn.q_proj.weight", "AD"},
    {"layers.#.attention.k.weight", "model.layers.#.self_attn.k_proj.weight", "KD"},
    {"layers.#.attention.v.weight", "model.layers.#.self_attn.v_proj.weight", "KD"},
    {"layers.#.attention.o.weight", "model.layers.#.self_attn.o_proj.weight", "DA"},
    {"layers.#.mlp_norm.weight", "model.layers.#.post_attention_layernorm.weight", "D"},
    {"layers.#.mlp.gate.weight", "model.layers.#.mlp.gate_proj.weight", "FD"},
    {"layers.#.mlp.up.weight", "model.layers.#.mlp.up_proj.weight", "FD"},
    {"layers.#.mlp.down.weight", "model.layers.#.mlp.down_proj.weight", "DF"},
    {"final_norm.weight", "model.norm.weight", "D"},
    {"head.weight", "lm_head.weight", "VD"},
};

constexpr NameRow kGpt2Rows[] = {
    {"embedding.weight", "transformer.wte.weight", "VD"},
    {"position_embedding.weight", "transformer.wpe.weight", "PD"},
    {"layers.#.attention_norm.weight", "transformer.h.#.ln_1.weight", "D"},
    {"layers.#.attention_norm.bias", "transformer.h.#.ln_1.bias", "D"},
    {"layers.#.attention.q.weight", "transformer.h.#.attn.c_attn.weight", "AD", true},
    {"layers.#.attention.q.bias", "transformer.h.#.attn.c_attn.bias", "A"},
    {"layers.#.attention.k.weight", "transformer.h.#.attn.c_attn.weight", "KD", true},
    {"layers.#.attention.k.bias", "transformer.h.#.attn.c_attn.bias", "K"},
    {"layers.#.attention.v.weight", "transformer.h.#.attn.c_attn.weight", "KD", true},
    {"layers.#.attention.v.bias", "transformer.h.#.attn.c_attn.bias", "K"},
    {"layers.#.attention.o.weight", "transformer.h.#.attn.c_proj.weight", "DA", true},
    {"layers.#.attention.o.bias", "transformer.h.#.attn.c_proj.bias", "D"},
    {"layers.#.mlp_norm.weight", "transformer.h.#.ln_2.weight", "D"},
    {"layers.#.mlp_norm.bias", "transformer.h.#.ln_2.bias", "D"},
    {"layers.#.mlp.up.weight", "transformer.h.#.mlp.c_fc.weight", "FD", true},
    {"layers.#.mlp.up.bias", "transformer.h.#.mlp.c_fc.bias", "F"},
    {"layers.#.mlp.down.weight", "transformer.h.#.mlp.c_proj.weight", "DF", true},
    {"layers.#.mlp.down.bias", "transformer.h.#.mlp.c_proj.bias", "D"},
    {"final_norm.weight", "transformer.ln_f.weight", "D"},
    {"final_norm.bias", "transformer.ln_f.bias", "D"},
    {"head.weight", "lm_head.weight", "VD"},
};

std::span<const NameRow> RowsOf(ModelFamily family) {
  return family == ModelFamily::kLlama ? std::span<const NameRow>(kLlamaRows)
                                       : std::span<const NameRow>(kGpt2Rows);
}

int64_t Extent(char letter, const ModelSpec& model, int64_t layer) {
  const LayerShape shape = model.ShapeOf(layer);
  switch (letter) {
    case 'V':
      return model.vocab_size;
    case 'P':
      return model.max_positions;
    case 'D':
      return model.width;
    case 'A':
      return shape.heads * model.head_size;
    case 'K':
      return shape.kv_heads * model.head_size;
    default:
      CHECK(letter == 'F') << letter;
      return shape.feed_forward;
  }
}

std::string WithLayer(std::string_view pattern, int64_t layer) {
  std::string name(pattern);
  const size_t place = name.find('#');
  return place == std::string::npos ? name : name.replace(place, 1, std::to_string(layer));
}

// Calls visit(our name, their name, shape, transposed) for each parameter in order of creation.
template <typename Visit>
void ForEachParameter(const ModelSpec& model, Visit visit) {
  const std::span<const NameRow> rows = RowsOf(model.family);
  const auto of_layer = [](const NameRow& row) { return row.ours.find('#') != row.ours.npos; };
  const auto first = std::find_if(rows.begin(), rows.end(), of_layer);
  const auto last = std::find_if_not(first, rows.end(), of_layer);
  const auto visit_rows = [&](auto begin, auto end, int64_t layer) {
    for (auto row = begin; row != end; ++row) {
      if (model.tied_head && row->ours == "head.weight") continue;
      std::vector<int64_t> shape;
      for (char letter : row->shape) shape.push_back(Extent(letter, model, layer));
      visit(WithLayer(row->ours, layer), WithLayer(row->theirs, layer), shape, row->transposed);
    }
  };
  visit_rows(rows.begin(), first, 0);
  for (int64_t layer = 0; layer < model.layers; ++layer) visit_rows(first, last, layer);
  visit_rows(last, rows.end(), 0);
}

// Element (o, i) of part `part` lies at base + o * out_stride + i * in_stride of the file's array.
struct Placement {
  int64_t base, out_stride, in_stride;
};
Placement PlacementOf(const HfTensor& tensor, int part) {
  int64_t before = 0;
  for (int i = 0; i < part; ++i) before += tensor.parts[static_cast<size_t>(i)].out();
  if (tensor.transposed) return {before, 1, tensor.out()};
  return {before * tensor.in(), tensor.in(), 1};
}

// Visits all (o, i) in tiles, so that neither side of a transposition strides through the cache.
template <typename Visit>
void ForEachCell(int64_t out, int64_t in, Visit visit) {
  constexpr int64_t kTile = 32;
  for (int64_t o0 = 0; o0 < out; o0 += kTile) {
    for (int64_t i0 = 0; i0 < in; i0 += kTile) {
      for (int64_t o = o0; o < std::min(o0 + kTile, out); ++o) {
        for (int64_t i = i0; i < std::min(i0 + kTile, in); ++i) visit(o, i);
      }
    }
  }
}

}  // namespace

int64_t HfTensor::out() const {
  return std::accumulate(parts.begin(), parts.end(), int64_t{0},
                         [](int64_t sum, const Part& part) { return sum + part.out(); });
}

std::vector<int64_t> HfTensor::FileShape() const {
  if (parts[0].shape.size() == 1) return {out()};
  return transposed ? std::vector<int64_t>{in(), out()} : std::vector<int64_t>{out(), in()};
}

std::vector<HfTensor> HfTensorsOf(const ModelSpec& model) {
  std::vector<HfTensor> tensors;
  ForEachParameter(model, [&](std::string ours, std::string theirs, std::vector<int64_t> shape,
                              bool transposed) {
    auto found = std::find_if(tensors.begin(), tensors.end(),
                              [&](const HfTensor& tensor) { return tensor.name == theirs; });
    if (found == tensors.end()) {
      tensors.push_back({.name = std::move(theirs), .parts = {}, .transposed = transposed});
      found = tensors.end() - 1;
    }
    found->parts.push_back({.parameter = std::move(ours), .shape = std::move(shape)});
  });
  return tensors;
}

std::vector<Parameter> DenseParametersOf(const ModelSpec& model) {
  std::vector<Parameter> parameters;
  ForEachParameter(model, [&](std::string ours, std::string, std::vector<int64_t> shape, bool) {
    Parameter parameter;
    const bool matrix = shape.size() == 2;
    const bool vocabulary = ours == "embedding.weight" || ours == "head.weight";
    parameter.layout =
        matrix ? SparseLayout::Dense(shape[0], shape[1]) : SparseLayout::Dense(1, shape[0]);
    if (vocabulary) {
      parameter.padding_count = (model.padded_vocab_size - model.vocab_size) * model.width;
    }
    parameter.decay = matrix;
    parameter.sparsifiable = matrix && ours.starts_with("layers.");
    parameter.init_std = model.init_std;
    parameter.name = std::move(ours);
    parameter.shape = std::move(shape);
    parameters.push_back(std::move(parameter));
  });
  return parameters;
}

template <typename T>
std::vector<T> StackParts(const HfTensor& tensor, std::vector<std::vector<T>> parts) {
  if (parts.size() == 1 && !tensor.transposed) return std::move(parts[0]);
  std::vector<T> stacked(static_cast<size_t>(tensor.out() * tensor.in()));
  for (size_t p = 0; p < tensor.parts.size(); ++p) {
    const Placement place = PlacementOf(tensor, static_cast<int>(p));
    const int64_t in = tensor.in();
    const T* source = parts[p].data();
    ForEachCell(tensor.parts[p].out(), in, [&](int64_t o, int64_t i) {
      stacked[static_cast<size_t>(place.base + o * place.out_stride + i * place.in_stride)] =
          source[o * in + i];
    });
  }
  return stacked;
}

template std::vector<float> StackParts(const HfTensor&, std::vector<std::vector<float>>);
template std::vector<uint8_t> StackParts(const HfTensor&, std::vector<std::vector<uint8_t>>);

std::vector<float> TakePart(const HfTensor& tensor, int part, std::vector<float> stacked) {
  if (tensor.parts.size() == 1 && !tensor.transposed) return stacked;
  const int64_t out = tensor.parts[static_cast<size_t>(part)].out(), in = tensor.in();
  const Placement place = PlacementOf(tensor, part);
  std::vector<float> values(static_cast<size_t>(out * in));
  ForEachCell(out, in, [&](int64_t o, int64_t i) {
    values[static_cast<size_t>(o * in + i)] =
        stacked[static_cast<size_t>(place.base + o * place.out_stride + i * place.in_stride)];
  });
  return values;
}

}  // namespace filigree
