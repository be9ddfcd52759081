#include "trainer/export/export_form.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

constexpr const char* kPaddedMend = "give --padded, which fills up with heads of zeros";

std::string Describe(const LayerShape& shape) {
  std::ostringstream text;
  text << shape.heads << " heads, " << shape.kv_heads << " key-value heads and "
       << shape.feed_forward << " feed-forward channels";
  return text.str();
}

// Layers of one size, or the first that differs from layer 0.
Status CheckEven(const ModelSpec& model) {
  const LayerShape first = model.ShapeOf(0);
  for (int64_t layer = 1; layer < model.layers; ++layer) {
    const LayerShape shape = model.ShapeOf(layer);
    if (shape == first) continue;
    return InvalidInput("layer 0 has " + Describe(first) + ", layer " + std::to_string(layer) +
                        " has " + Describe(shape) +
                        ": transformers' class has one size for all layers; go on pruning until "
                        "they are even, or give --padded, which fills the smaller ones up with "
                        "zeros (the same logits, the size of the largest)");
  }
  return OkStatus();
}

// Queries that share a key-value head; the same in every layer.
StatusOr<int64_t> GroupSize(const ModelSpec& model) {
  int64_t group = 0;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const LayerShape shape = model.ShapeOf(layer);
    if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0) {
      return InvalidInput("layer " + std::to_string(layer) + " has " + std::to_string(shape.heads) +
                          " heads over " + std::to_string(shape.kv_heads) +
                          " key-value heads, which do not divide them; it cannot be exported");
    }
    const int64_t own = shape.heads / shape.kv_heads;
    if (group != 0 && own != group) {
      return InvalidInput("layer " + std::to_string(layer) + " has " + std::to_string(own) +
                          " queries a key-value head, layer 0 has " + std::to_string(group) +
                          ": transformers' class has one number for all layers; it cannot be "
                          "exported");
    }
    group = own;
  }
  return group;
}

LayerShape Largest(const ModelSpec& model) {
  LayerShape largest;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const LayerShape shape = model.ShapeOf(layer);
    largest.heads = std::max(largest.heads, shape.heads);
    largest.kv_heads = std::max(largest.kv_heads, shape.kv_heads);
    largest.feed_forward = std::max(largest.feed_forward, shape.feed_forward);
  }
  return largest;
}

// Whether the family's class takes so many heads: they divide the width, or make it up.
bool TakesHeads(const ModelSpec& model, int64_t heads) {
  if (model.family == ModelFamily::kLlama) return model.width % heads == 0;
  return heads * model.head_size == model.width;
}

Status HeadsProblem(const ModelSpec& model, const std::string& mend) {
  const std::string width = std::to_string(model.width), heads = std::to_string(model.heads);
  if (model.family == ModelFamily::kLlama) {
    return InvalidInput("a llama of width " + width + " with " + heads +
                        " heads cannot be exported: transformers loads only widths that are a "
                        "multiple of the heads; " +
                        mend);
  }
  return InvalidInput("a GPT-2 of width " + width + " with " + heads + " heads of " +
                      std::to_string(model.head_size) +
                      " cannot be exported: transformers' GPT2LMHeadModel has heads that make up "
                      "its width; " +
                      mend);
}

// More key-value heads (and their queries) until the class takes their number.
Status PadHeads(int64_t group, ModelSpec* model) {
  for (int64_t kv_heads = model->kv_heads; kv_heads * group <= model->width; ++kv_heads) {
    if (!TakesHeads(*model, kv_heads * group)) continue;
    model->kv_heads = kv_heads;
    model->heads = kv_heads * group;
    return OkStatus();
  }
  return HeadsProblem(*model, "no larger number of heads does either");
}

}  // namespace

StatusOr<ExportForm> FormOf(const ModelSpec& model, bool padded) {
  if (!padded) RETURN_IF_ERROR(CheckEven(model));
  ASSIGN_OR_RETURN(const int64_t group, GroupSize(model));
  if (model.family == ModelFamily::kGpt2 && group != 1) {
    return InvalidInput(
        "a GPT-2 with fewer key-value heads than heads cannot be exported: transformers' "
        "GPT2LMHeadModel has no such form");
  }
  ExportForm form{.model = model};
  const LayerShape largest = Largest(model);
  form.model.heads = largest.heads;
  form.model.kv_heads = largest.kv_heads;
  form.model.feed_forward = largest.feed_forward;
  form.model.layer_shapes.clear();
  form.model.norm_width = 0;
  const double divisor_ratio =
      static_cast<double>(model.norm_divisor()) / static_cast<double>(model.width);
  form.model.norm_epsilon = model.norm_epsilon * divisor_ratio;
  form.gain_factor = std::sqrt(divisor_ratio);
  if (padded) {
    RETURN_IF_ERROR(PadHeads(group, &form.model));
  } else if (!TakesHeads(form.model, form.model.heads)) {
    return HeadsProblem(form.model, kPaddedMend);
  }
  return form;
}

template <typename T>
std::vector<T> PadTo(const std::vector<int64_t>& padded, const std::vector<int64_t>& shape,
                     std::vector<T> values) {
  if (padded == shape) return values;
  CHECK_EQ(padded.size(), shape.size());
  const int64_t rows = shape.size() == 2 ? shape[0] : 1, cols = shape.back();
  const int64_t padded_rows = padded.size() == 2 ? padded[0] : 1, padded_cols = padded.back();
  CHECK(rows <= padded_rows && cols <= padded_cols) << cols << " in " << padded_cols;
  std::vector<T> result(static_cast<size_t>(padded_rows * padded_cols), T(0));
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(values.begin() + row * cols, cols, result.begin() + row * padded_cols);
  }
  return result;
}

template std::vector<float> PadTo(const std::vector<int64_t>&, const std::vector<int64_t>&,
                                  std::vector<float>);
template std::vector<uint8_t> PadTo(const std::vector<int64_t>&, const std::vector<int64_t>&,
                                    std::vector<uint8_t>);

}  // namespace filigree
