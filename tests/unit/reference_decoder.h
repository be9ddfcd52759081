// Llama and GPT-2 decoders written out in double precision from their definitions, layer by layer
// of whatever sizes: what exports of models that ours does not train are compared with.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "trainer/spec.h"

namespace filigree {

class ReferenceDecoder {
 public:
  using Vector = std::vector<double>;

  // `weights` by our names, row-major; a tied head is the embedding.
  ReferenceDecoder(const ModelSpec& model, std::map<std::string, Vector> weights)
      : model_(model), weights_(std::move(weights)) {}

  // Logits [tokens, V].
  std::vector<Vector> Logits(const std::vector<int32_t>& tokens) const {
    std::vector<Vector> stream;
    for (size_t t = 0; t < tokens.size(); ++t) {
      Vector x = Row("embedding.weight", tokens[t]);
      if (!llama()) x = Sum(x, Row("position_embedding.weight", static_cast<int64_t>(t)));
      stream.push_back(std::move(x));
    }
    for (int64_t layer = 0; layer < model_.layers; ++layer) AddLayer(layer, &stream);
    std::vector<Vector> logits;
    for (const Vector& x : stream) {
      const Vector normed = Norm("final_norm", x);
      logits.emplace_back();
      for (int64_t v = 0; v < model_.vocab_size; ++v) {
        logits.back().push_back(
            Dot(normed, Row(model_.tied_head ? "embedding.weight" : "head.weight", v)));
      }
    }
    return logits;
  }

 private:
  bool llama() const { return model_.family == ModelFamily::kLlama; }

  static Vector Sum(Vector a, const Vector& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
  }
  static double Dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  Vector Row(const std::string& name, int64_t row) const {
    const auto begin = weights_.at(name).begin() + row * model_.width;
    return Vector(begin, begin + model_.width);
  }

  // RMSNorm with the model's divisor, or LayerNorm.
  Vector Norm(const std::string& name, const Vector& x) const {
    const auto width = static_cast<double>(x.size());
    double mean = 0;
    if (!llama()) {
      for (double value : x) mean += value / width;
    }
    double squares = 0;
    for (double value : x) squares += (value - mean) * (value - mean);
    const double divisor = llama() ? static_cast<double>(model_.norm_divisor()) : width;
    const double rstd = 1 / std::sqrt(squares / divisor + model_.norm_epsilon);
    Vector y = weights_.at(name + ".weight");
    for (size_t i = 0; i < x.size(); ++i) y[i] *= (x[i] - mean) * rstd;
    return llama() ? y : Sum(y, weights_.at(name + ".bias"));
  }

  Vector Linear(const std::string& name, const Vector& x) const {
    const Vector& w = weights_.at(name + ".weight");
    Vector y(w.size() / x.size(), 0.0);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
    }
    return llama() ? y : Sum(y, weights_.at(name + ".bias"));
  }

  // Rotate-half positions of every head of x.
  void Rope(int64_t position, Vector* x) const {
    const int64_t size = model_.head_size, half = size / 2;
    for (size_t head = 0; head < x->size(); head += static_cast<size_t>(size)) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(position) *
                             std::pow(model_.rope_theta, -2.0 * j / static_cast<double>(size));
        double &a = (*x)[head + j], &b = (*x)[head + j + half];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
  }

  // Causal attention of the last token over all of `keys` and `values`.
  Vector Attend(int64_t layer, const Vector& q, const std::vector<Vector>& keys,
                const std::vector<Vector>& values) const {
    const LayerShape shape = model_.ShapeOf(layer);
    const int64_t size = model_.head_size;
    Vector out(q.size(), 0.0);
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t from = head * size, shared = head / (shape.heads / shape.kv_heads) * size;
      Vector weights;
      double sum = 0;
      for (const Vector& key : keys) {
        double score = 0;
        for (int64_t j = 0; j < size; ++j) score += q[from + j] * key[shared + j];
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(size))));
        sum += weights.back();
      }
      for (size_t t = 0; t < keys.size(); ++t) {
        for (int64_t j = 0; j < size; ++j)
          out[from + j] += weights[t] / sum * values[t][shared + j];
      }
    }
    return out;
  }

  Vector FeedForward(const std::string& prefix, const Vector& x) const {
    Vector hidden = Linear(prefix + "mlp.up", x);
    if (llama()) {
      const Vector gate = Linear(prefix + "mlp.gate", x);
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] *= gate[i] / (1 + std::exp(-gate[i]));
    } else {
      for (double& h : hidden) {
        h *= 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (h + 0.044715 * h * h * h)));
      }
    }
    return Linear(prefix + "mlp.down", hidden);
  }

  void AddLayer(int64_t layer, std::vector<Vector>* stream) const {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    std::vector<Vector> keys, values;
    for (size_t t = 0; t < stream->size(); ++t) {
      Vector& x = (*stream)[t];
      const Vector normed = Norm(prefix + "attention_norm", x);
      Vector q = Linear(prefix + "attention.q", normed);
      keys.push_back(Linear(prefix + "attention.k", normed));
      values.push_back(Linear(prefix + "attention.v", normed));
      if (llama()) {
        Rope(static_cast<int64_t>(t), &q);
        Rope(static_cast<int64_t>(t), &keys.back());
      }
      x = Sum(x, Linear(prefix + "attention.o", Attend(layer, q, keys, values)));
      x = Sum(x, FeedForward(prefix, Norm(prefix + "mlp_norm", x)));
    }
  }

  const ModelSpec model_;
  const std::map<std::string, Vector> weights_;
};

}  // namespace filigree
