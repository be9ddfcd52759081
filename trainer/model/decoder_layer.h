// One pre-norm decoder layer: x + o(attention(norm(x))), then that +
// down(act(gate_up(norm(that)))).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/model/activation_arena.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/model/norm.h"
#include "trainer/model/parameter_table.h"

namespace filigree {

// What a layer computes on the way, [T, ...]. Fp is F padded as the device asks; padding is zero.
// Recompute levels share some of it between layers.
struct LayerActivations {
  NormStatistics attention_statistics, mlp_statistics;
  TensorView attention_input;   // norm of the layer's input [T, D]
  TensorView qkv;               // q | k | v, after RoPE [T, (H + 2K) E]
  TensorView attention_output;  // before o [T, H E]
  TensorView lse;               // [T, H]
  TensorView middle;            // the residual stream between attention and feed-forward [T, D]
  TensorView mlp_input;         // norm of `middle` [T, D]
  // gate | up, or up [T, 2Fp or Fp]; with gelu_derivative_bits codes of gelu'(up).
  TensorView gate_up;
  TensorView hidden;            // after the activation function [T, Fp]
  TensorView inner;             // between the factors of all linears [T, inner_width()], or empty
};

// Backward's temporaries, which all layers lay out over the same memory.
struct LayerGradients {
  TensorView normed;            // of attention_input and mlp_input [T, D]
  TensorView qkv;               // [T, (H + 2K) E]
  TensorView attention_output;  // [T, H E]
  TensorView gate_up;           // [T, 2Fp or Fp]
  TensorView inner;             // of one group of linears [T, the widest group's], or empty
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelSpec& spec, int64_t layer, const std::vector<SparsitySpec>& sparsity,
               uint64_t seed, const std::map<std::string, SparseLayout>& layouts, Backend& backend,
               ParameterTable& table);

  std::vector<TableLinear*> linears();
  std::vector<const Linear*> parts() const;

  // Columns of LayerActivations::inner, and of LayerGradients::inner: they differ between layers
  // where their parameterisations do, so the model lays them out.
  int64_t inner_width() const;
  int64_t inner_grad_width() const;

  // Which activations to lay out: all of them, those that ACTIVATIONS keeps, or those it
  // recomputes.
  enum class Part { kAll, kKept, kRecomputed };
  void LayOut(ActivationArena& arena, int64_t tokens, Part part, LayerActivations* a) const;
  LayerGradients LayOutGradients(ActivationArena& arena, int64_t tokens) const;

  // out [T, D] from x [T, D], which stay untouched until Backward.
  void Forward(ConstTensorView x, TensorView out, const LayerActivations& a, int64_t seq_len,
               Stream& stream);
  // Fills what Part::kRecomputed lays out again, from x and what was kept.
  void Recompute(ConstTensorView x, const LayerActivations& a, Stream& stream);
  // `dx` [T, D] comes as the gradient of the output and leaves as that of the input; in the same
  // pass its sums become the gradient of `bias_of_x`, the bias in the last product that made x (or
  // empty).
  void Backward(ConstTensorView x, TensorView dx, const LayerActivations& a,
                const LayerGradients& g, int64_t seq_len, const BoundParameter& bias_of_x,
                Stream& stream);
  // Call once the linears are bound: gradients of biases are made by passes that have the summands
  // in registers anyway, as far as the linears let go of them.
  void ReleaseBiasGrads();
  // What whoever makes the gradient of this layer's output is to do for its last bias.
  const BoundParameter& output_bias() const { return down_bias_; }

 private:
  int64_t hidden_width() const;  // Fp
  void Attend(const LayerActivations& a, int64_t seq_len, Stream& stream);
  void Activate(const LayerActivations& a, Stream& stream);
  void BackwardMlp(TensorView dx, const LayerActivations& a, const LayerGradients& g,
                   Stream& stream);
  void BackwardAttention(ConstTensorView x, TensorView dx, const LayerActivations& a,
                         const LayerGradients& g, int64_t seq_len, const BoundParameter& bias_of_x,
                         Stream& stream);
  void Rope(TensorView qkv, int64_t seq_len, bool inverse, Stream& stream);
  // The columns of `inner` that belong to one of the four groups.
  TensorView InnerOf(const TableLinear& linear, TensorView inner) const;
  InnerActivations InnerOf(const TableLinear& linear, const LayerActivations& a,
                           const LayerGradients& g) const;

  const ModelSpec& spec_;
  const LayerShape shape_;
  const FamilyTraits& traits_;
  Backend& backend_;
  // In creation order: the order of parameters.
  Norm attention_norm_;
  TableLinear qkv_, o_;
  Norm mlp_norm_;
  TableLinear gate_up_, down_;
  BoundParameter o_bias_, up_bias_, down_bias_;  // released, or empty
};

}  // namespace filigree
