// Every operation a backend performs, with its shapes: the first header to read.
//
// Conventions. T = B * S tokens (B sequences of S), D model width, H heads, K key-value heads, E
// head size, V vocabulary (Vp padded). Views are row-major, of any row stride unless "contiguous"
// is said. Activations, values and their gradients share one compute dtype (F32 on the CPU, F64 in
// the CPU's gradient tests, BF16 on CUDA); sums run in at least fp32. "Adds" means out += result.
// Operations are asynchronous on their stream; no operation allocates. A broken shape is a CHECK.
//
// The CPU backend (kernels/cpu) is the specification: tests compare other backends with it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/block_quantization.h"
#include "kernels/base/device.h"
#include "kernels/base/stochastic_rounding.h"
#include "kernels/base/tensor_view.h"
#include "kernels/sparse/layout.h"
#include "kernels/sparse/two_four.h"
#include "kernels/state_ops.h"
#include "kernels/two_four.h"

namespace filigree {

// ---------------------------------------------------------------------------- dense operations

// Where a product makes the gradient dy of y = silu(gate) * up (SwiGluArgs): with it as dy,
//   dgate = dy * up * silu'(gate)   is the product's output,
//   dup   = dy * silu(gate)         goes beside it, and dy itself nowhere.
// With `linear` silu is the identity. All four views are given or none.
struct SwiGluGradient {
  ConstTensorView gate = {}, up = {};
  TensorView dup = {};
  bool linear = false;

  bool empty() const { return gate.empty(); }
};

// Where the output of a product is gate and up side by side, each half of its columns:
// y = silu(gate) * up (SwiGluArgs) goes beside it, made of gate and up as they are stored. With
// `linear` silu is the identity.
struct SwiGluOutput {
  TensorView y = {};  // [T, half of the output's columns]
  bool linear = false;

  bool empty() const { return y.empty(); }
};

// What a product does with its result (bias and accumulation included) before it is stored. All of
// the output's shape but for SwiGLU's y, none its memory; empty views do nothing. At most one of
// pre_activation, gelu_input, swiglu and swiglu_output is given. What GELU keeps for its gradient
// is its input, or, in views of U8, codes of its derivative there (kernels/base/gelu_code.h).
struct ProductEpilogue {
  ConstTensorView residual = {};    // is added to the result
  TensorView pre_activation = {};   // receives the result, and the output gelu(result)
  ConstTensorView gelu_input = {};  // the output is result * gelu'(gelu_input)
  SwiGluGradient swiglu = {};       // the output is dgate, the result dy
  SwiGluOutput swiglu_output = {};  // receives silu(gate) * up of the output [gate, up]
  // [N] or empty: as ColumnSum of the output, the gradient of the bias that was added where the
  // output's own argument was made.
  TensorView column_sums = {};
  bool accumulate_sums = true;

  // Whether GELU keeps codes.
  bool makes_codes() const {
    return !pre_activation.empty() && pre_activation.dtype() == DType::kU8;
  }
  // Where the result is before GELU, if it is stored at all: pre_activation, or the output itself.
  TensorView ResultIn(TensorView out) const {
    return pre_activation.empty() || makes_codes() ? out : pre_activation;
  }
};

// Products of one shape: the operands and the output of product i begin i * (their number of
// elements here) after those of product 0; 0 where all products read the same. Outputs do not
// overlap.
struct MatMulBatch {
  int64_t count = 1;
  int64_t a = 0, b = 0, out = 0;
};

// out[M, N] (+)= scale * op(a) * op(b) + bias, where op transposes its operand if asked. `bias` [N]
// may be empty; a batch has no bias and no epilogue.
struct MatMulArgs {
  ConstTensorView a;  // [M, K], or [K, M] if transpose_a
  ConstTensorView b;  // [K, N], or [N, K] if transpose_b
  TensorView out;     // [M, N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  double scale = 1;
  ConstTensorView bias = {};
  ProductEpilogue epilogue = {};
  MatMulBatch batch = {};
};

// out[n] (+)= sum over rows of in[:, n].
struct ColumnSumArgs {
  ConstTensorView in;  // [T, N]
  TensorView out;      // [N], gradient dtype
  bool accumulate = true;
};

// y = x * rsqrt(mean(x^2) + epsilon) * gain. `rstd` [T] F32 (F64 for F64) is kept for backward.
// The mean divides by `divisor`, where given, instead of D: what a model that lost columns of its
// stem still divides by, as if they were there and zero.
// (The residual stream's sum is a product's epilogue, which has the summand in registers: four
// passes over [T, D] for sum and norm, where a norm that added would take five.)
struct RmsNormArgs {
  ConstTensorView x;     // [T, D]
  ConstTensorView gain;  // [D]
  TensorView y;          // [T, D]
  TensorView rstd;       // [T]
  double epsilon = 1e-6;
  int64_t divisor = 0;  // 0: D
};
struct RmsNormBackwardArgs {
  ConstTensorView x, dy;  // [T, D]
  ConstTensorView gain;   // [D]
  ConstTensorView rstd;   // [T]
  TensorView dx;          // [T, D]; adds (the residual's gradient is there already)
  TensorView dgain;       // [D]; adds if `accumulate`
  bool accumulate = true;
  TensorView dx_sums = {};  // [D] or empty: as ColumnSum of dx as it leaves, in the same pass
  bool accumulate_dx_sums = true;
  int64_t divisor = 0;  // as in forward
};

// y = (x - mean) * rstd * gain + bias.
struct LayerNormArgs {
  ConstTensorView x;           // [T, D]
  ConstTensorView gain, bias;  // [D]
  TensorView y;                // [T, D]
  TensorView mean, rstd;       // [T]
  double epsilon = 1e-5;
};
struct LayerNormBackwardArgs {
  ConstTensorView x, dy;       // [T, D]
  ConstTensorView gain;        // [D]
  ConstTensorView mean, rstd;  // [T]
  TensorView dx;               // [T, D]; adds
  TensorView dgain, dbias;     // [D]; add if `accumulate`
  bool accumulate = true;
  TensorView dx_sums = {};  // as for RmsNormBackward
  bool accumulate_dx_sums = true;
};

// y = silu(gate) * up; silu(gate) where `up` is empty; gate * up where `linear`, which needs `up`.
struct SwiGluArgs {
  ConstTensorView gate, up = {};  // [T, F]
  TensorView y;                   // [T, F]
  bool linear = false;
};
struct SwiGluBackwardArgs {
  ConstTensorView gate, up = {}, dy;  // [T, F]; `up` and `dup` are empty together
  // [T, F]; overwrites; each may alias any of gate, up and dy, not the other.
  TensorView dgate, dup = {};
  bool linear = false;
};

// y = gelu(x), tanh form (Hugging Face's gelu_new). `codes`, where given, receive gelu'(x).
struct GeluArgs {
  ConstTensorView x;      // [T, F]
  TensorView y;           // [T, F]; may alias x
  TensorView codes = {};  // [T, F] U8, kernels/base/gelu_code.h
};
struct GeluBackwardArgs {
  ConstTensorView x;   // [T, F], or the codes
  ConstTensorView dy;  // [T, F]
  TensorView dx;       // [T, F]; overwrites; may alias dy
};

// out = a + b, any shape; out may alias a or b.
struct AddArgs {
  ConstTensorView a, b;
  TensorView out;
};

class DenseOps {
 public:
  virtual ~DenseOps() = default;
  virtual void MatMul(const MatMulArgs& args, Stream& stream) = 0;
  virtual void ColumnSum(const ColumnSumArgs& args, Stream& stream) = 0;
  virtual void RmsNorm(const RmsNormArgs& args, Stream& stream) = 0;
  virtual void RmsNormBackward(const RmsNormBackwardArgs& args, Stream& stream) = 0;
  virtual void LayerNorm(const LayerNormArgs& args, Stream& stream) = 0;
  virtual void LayerNormBackward(const LayerNormBackwardArgs& args, Stream& stream) = 0;
  virtual void SwiGlu(const SwiGluArgs& args, Stream& stream) = 0;
  virtual void SwiGluBackward(const SwiGluBackwardArgs& args, Stream& stream) = 0;
  virtual void Gelu(const GeluArgs& args, Stream& stream) = 0;
  virtual void GeluBackward(const GeluBackwardArgs& args, Stream& stream) = 0;
  virtual void Add(const AddArgs& args, Stream& stream) = 0;
};

// --------------------------------------------------------------------------- sparse operations

// A layout as the backend's kernels read it: index buffers on the device, transposed index,
// schedules. Made once a layout by PrepareLayout, owned by the caller.
class PreparedLayout {
 public:
  explicit PreparedLayout(SparseLayout layout) : layout_(std::move(layout)) {}
  virtual ~PreparedLayout() = default;
  const SparseLayout& layout() const { return layout_; }
  // Device bytes of the indices and schedules it holds.
  virtual size_t bytes() const = 0;
  // Of a training step over `tokens` tokens: what it comes to hold beside the indices that it has
  // from the start, and the most scratch that one of its products takes from the backend.
  // `bias_sums`: the weight's gradient is asked for SddmmArgs::dy_sums too.
  struct StepUse {
    int64_t held_bytes = 0, scratch_bytes = 0;
  };
  virtual StepUse step_use(int64_t tokens, bool bias_sums) const { return {}; }

 private:
  SparseLayout layout_;
};

// A product of thin factors beside a blocked weight: W grows by B A for every part that the weight
// was joined from (PrepareGroup), or for itself. Without factors it is nothing.
struct LowRankTerm {
  // What lies between the factors, the parts' side by side [T, sum of ranks]: x A^T going forward,
  // dy B going back (times whatever scales B A).
  ConstTensorView inner = {};
  // A part each: B [out, r] going forward, A [r, in] going back. Read during the call only.
  std::span<const ConstTensorView> factors = {};
};

// Blocked products. W is the weight [out, in] that `weight` (blocked) and `values` [stored]
// describe. y = x * W^T + inner * B^T + bias; rows of W without blocks add nothing.
struct SpmmArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView values;     // [stored_count]
  ConstTensorView x;          // [T, in]
  TensorView y;               // [T, out]; overwrites
  ConstTensorView bias = {};  // [out] or empty
  ProductEpilogue epilogue = {};
  LowRankTerm low_rank = {};
};
// dx (+)= dy * W + inner * A, from the same stored blocks.
struct SpmmTransposedArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView values;  // [stored_count]
  ConstTensorView dy;      // [T, out]
  TensorView dx;           // [T, in]
  bool accumulate = false;
  ProductEpilogue epilogue = {};
  LowRankTerm low_rank = {};
};
// dvalues (+)= the stored cells of dy^T * x (SDDMM); edge padding receives zero.
struct SddmmArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView dy;  // [T, out]
  ConstTensorView x;   // [T, in]
  TensorView dvalues;  // [stored_count], gradient dtype
  bool accumulate = true;
  // [out] or empty: as ColumnSum of dy, the gradient of the bias beside the weight; in the same
  // pass where the backend can.
  TensorView dy_sums = {};
  bool accumulate_sums = true;
};

// dense[out, in] = stored values at their cells, zero elsewhere; or dense += stored values, other
// cells untouched. Any layout kind.
struct ScatterStoredArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView values;  // [stored_count]
  TensorView dense;        // [out, in]
  bool accumulate = false;
};
// values (+)= the stored cells of dense; padding receives zero.
struct GatherStoredArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView dense;  // [out, in]
  TensorView values;      // [stored_count]
  bool accumulate = false;
};

class SparseOps {
 public:
  virtual ~SparseOps() = default;
  virtual std::unique_ptr<PreparedLayout> PrepareLayout(const SparseLayout& layout) = 0;
  // Blocked weights with one input as a single weight, the parts' outputs one after the other. Its
  // values (and gradients) are one view that spans the parts': those of part i begin
  // `value_begin[i]` elements after those of part 0, ascending; what lies between them is not
  // touched. Returns nullptr where the backend does not gain by it: then multiply part by part.
  virtual std::unique_ptr<PreparedLayout> PrepareGroup(std::span<const PreparedLayout* const> parts,
                                                       std::span<const int64_t> value_begin) {
    return nullptr;
  }
  // What a floating-point operation of training with this blocked layout beside thin factors costs,
  // in those of a dense product: what a form is chosen by. 1 where both run at one rate.
  virtual double BlockedFlopCost(const SparseLayout& layout) const { return 1; }
  virtual void Spmm(const SpmmArgs& args, Stream& stream) = 0;
  virtual void SpmmTransposed(const SpmmTransposedArgs& args, Stream& stream) = 0;
  virtual void Sddmm(const SddmmArgs& args, Stream& stream) = 0;
  virtual void ScatterStored(const ScatterStoredArgs& args, Stream& stream) = 0;
  virtual void GatherStored(const GatherStoredArgs& args, Stream& stream) = 0;
  // The same for several weights, as those of a group, in as few launches as the backend can; all
  // of one dtype each, and what one writes no other reads or writes.
  virtual void ScatterGroup(std::span<const ScatterStoredArgs> parts, Stream& stream) {
    for (const ScatterStoredArgs& part : parts) ScatterStored(part, stream);
  }
  virtual void GatherGroup(std::span<const GatherStoredArgs> parts, Stream& stream) {
    for (const GatherStoredArgs& part : parts) GatherStored(part, stream);
  }
  // Products with the dense `weight` [out, in], which outlives them and of which `kind` holds.
  // Returns nullptr where the backend has nothing for it: then multiply with MatMul.
  virtual std::unique_ptr<TwoFourWeight> PrepareTwoFour(ConstTensorView weight, TwoFourKind kind) {
    return nullptr;
  }
  // Device bytes that they come to hold at most.
  virtual int64_t TwoFourBytes(int64_t out, int64_t in, TwoFourKind kind) const { return 0; }
};

// ------------------------------------------------------------------------------------ attention

// Rotate-half RoPE in place on x [T, heads * E]: position p = row % seq_len, pair
// (j, j + E/2) turned by p * theta^(-2j/E). `inverse` turns back (the backward pass).
struct RopeArgs {
  TensorView x;
  int64_t seq_len = 0;
  int64_t heads = 0;
  double theta = 10000.0;
  bool inverse = false;
};

// Causal softmax(q k^T / sqrt(E)) v within each sequence; query head h reads key-value head h / (H
// / K).
struct AttentionArgs {
  ConstTensorView q;     // [T, H * E]
  ConstTensorView k, v;  // [T, K * E]
  TensorView out;        // [T, H * E]
  // Log-sum-exp of the scaled scores, F32 (F64 for F64), for AttentionBackward of the same backend.
  // The CPU stores [T, H]; CUDA needs a contiguous view and stores [B, H, S] in it.
  TensorView lse;  // [T, H]
  int64_t seq_len = 0, heads = 0, kv_heads = 0;
};
struct AttentionBackwardArgs {
  ConstTensorView q, k, v, out, dout;  // as above
  ConstTensorView lse;                 // [T, H], as Attention left it
  TensorView dq, dk, dv;               // as q, k, v; overwrites
  int64_t seq_len = 0, heads = 0, kv_heads = 0;
};

class AttentionOps {
 public:
  virtual ~AttentionOps() = default;
  virtual void Rope(const RopeArgs& args, Stream& stream) = 0;
  virtual void Attention(const AttentionArgs& args, Stream& stream) = 0;
  virtual void AttentionBackward(const AttentionBackwardArgs& args, Stream& stream) = 0;
};

// --------------------------------------------------------------------------- embedding and loss

// out[t] = table[tokens[t]] + positions[t % seq_len]; `positions` may be empty.
struct EmbeddingArgs {
  ConstTensorView tokens;     // [T] I32, each in [0, V)
  ConstTensorView table;      // [Vp, D]
  ConstTensorView positions;  // [max positions, D] or empty
  TensorView out;             // [T, D]
  int64_t seq_len = 0;
};
// dtable[token] += sum of dout over its occurrences, in a fixed order; dpositions likewise.
struct EmbeddingBackwardArgs {
  ConstTensorView tokens;
  ConstTensorView dout;   // [T, D]
  TensorView dtable;      // [Vp, D]; adds
  TensorView dpositions;  // or empty; adds
  int64_t seq_len = 0;
};

// Per-token loss -log softmax(logits)[target] over the first `vocab_size` columns; columns beyond
// are padding of logit -inf. A target of -1 is masked: loss 0, gradient 0. When `loss_scale` is not
// zero the logits are overwritten by loss_scale * (softmax - onehot), padding columns by zero.
struct CrossEntropyArgs {
  TensorView logits;        // [T, Vp]
  ConstTensorView targets;  // [T] I32
  TensorView losses;        // [T] F32 (F64 for F64)
  int64_t vocab_size = 0;
  double loss_scale = 0;  // 1 / global valid tokens in training, 0 in evaluation
  // [1] F32 or empty: read instead, when the operation runs, if loss_scale is not zero. For work
  // that is recorded once and runs with many.
  ConstTensorView loss_scale_on_device = {};
};

// The same with a teacher (Hinton et al., arXiv 1503.02531): of a token with logits z and teacher's
// logits u,
//   losses      = CE(softmax(z), target)
//   divergences = T^2 KL(softmax(u / T) || softmax(z / T))
// and where `loss_scale` is not zero the logits are overwritten by the gradient of
// loss_scale * ((1 - alpha) losses + alpha divergences):
//   loss_scale * ((1 - alpha) (softmax(z) - onehot) + alpha T (softmax(z / T) - softmax(u / T))).
struct DistillationLossArgs {
  TensorView logits;               // [T, Vp]
  ConstTensorView teacher_logits;  // [T, at least V]; padding as in the logits
  ConstTensorView targets;         // [T] I32
  TensorView losses, divergences;  // [T] F32 (F64 for F64)
  int64_t vocab_size = 0;
  double temperature = 1, alpha = 0;
  double loss_scale = 0;
};

class LossOps {
 public:
  virtual ~LossOps() = default;
  virtual void Embedding(const EmbeddingArgs& args, Stream& stream) = 0;
  virtual void EmbeddingBackward(const EmbeddingBackwardArgs& args, Stream& stream) = 0;
  virtual void CrossEntropy(const CrossEntropyArgs& args, Stream& stream) = 0;
  virtual void DistillationLoss(const DistillationLossArgs& args, Stream& stream) = 0;
};

// ------------------------------------------------------------------------------------ optimizer

// AdamW (Loshchilov & Hutter 2019) over contiguous elements; bias-corrected; decoupled decay:
//   g = grad * scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w - lr * (m / (1-b1^step) / (sqrt(v / (1-b2^step)) + epsilon) + weight_decay * w)
// `master` is updated and `values` receives it rounded; both may be the same memory. `step` counts
// from 1. `scale` is read on the device (one F32: clip factor); where it is not finite, nothing is
// written.
// Without a `master`, `values` themselves are the weights, numbers of BF16 (in whatever dtype
// compute has): the update is computed in fp32 and rounded stochastically, and so are moments held
// in BF16, since a second moment that decays by 0.1 % a step would stand still in them.
// Moments may be held in 8 bits, with a scale a block of 256 (block_quantization.h): the update
// uses the new moments before they are quantised.
// `born`, where given, holds for each element the updates done when it joined, a whole number, 0
// for those there from the start: the element's own step is step - born, and the update of one that
// joined later is multiplied by min(1, own step / growth_ramp) (SMET, arXiv 2606.00888: without it
// every topology update is a spike of the loss).
struct AdamWArgs {
  TensorView values;                      // compute dtype
  TensorView master = {};                 // F32 (F64 for F64), or empty
  ConstTensorView grads;                  // gradient dtype
  TensorView m, v;                        // F32 (F64 for F64), BF16 beside no master, or U8 codes
  TensorView m_scale = {}, v_scale = {};  // [ceil(n / 256)] F32 beside codes
  ConstTensorView scale;                  // [1] F32
  double lr = 0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0;
  int64_t step = 1;
  ConstTensorView born = {};  // [n] as master, or empty
  int64_t growth_ramp = 0;    // updates; 0: none
  // Of this update; empty where nothing is rounded stochastically. With codes no more than one,
  // since their blocks count from the first element.
  std::vector<RoundedRange> rounding = {};
};
// That `rounding` is as said.
inline void CheckRounding(const AdamWArgs& args) {
  const std::vector<RoundedRange>& ranges = args.rounding;
  const bool codes = args.m.dtype() == DType::kU8;
  CHECK(ranges.empty() ? !args.master.empty() : !codes || ranges.size() == 1)
      << ranges.size() << " ranges to round";
  CHECK(ranges.empty() || ranges.front().begin == 0);
  for (const RoundedRange& range : ranges) {
    CHECK(range.begin % kQuantizationBlock == 0 && range.key.first % 8 == 0)
        << "elements from " << range.begin << " are rounded as those from " << range.key.first;
  }
}

// out[0] += sum of squares of `in`, F64, in a fixed order.
struct SumOfSquaresArgs {
  ConstTensorView in;
  TensorView out;  // [1] F64
};

// The factor that clips gradients to a global norm of `clip_norm`: min(1, clip_norm / norm) of the
// norm sqrt(sum_of_squares), 1 where clip_norm is 0; NaN where the norm is not finite, so that
// AdamW changes nothing. On the device, so that the update need not wait for the host.
struct ClipScaleArgs {
  ConstTensorView sum_of_squares;  // [1] F64
  TensorView scale;                // [1] F32
  double clip_norm = 0;
};

// out = in, rounded to the nearest (ties to even). Contiguous.
struct RoundArgs {
  ConstTensorView in;  // F32
  TensorView out;      // BF16
};

class OptimizerOps {
 public:
  virtual ~OptimizerOps() = default;
  virtual void Round(const RoundArgs& args, Stream& stream) = 0;
  virtual void AdamW(const AdamWArgs& args, Stream& stream) = 0;
  virtual void SumOfSquares(const SumOfSquaresArgs& args, Stream& stream) = 0;
  virtual void ClipScale(const ClipScaleArgs& args, Stream& stream) = 0;
};

// ---------------------------------------------------------------------------------- pruning

// Elements [first, first + n) of a row-major matrix of `columns`, as a rank owns them; cell (r, c)
// belongs to unit r / row_extent of its row and unit c / column_extent of its column. Cells whose
// unit is beyond the given arrays (padding) are left out.
struct CellUnits {
  int64_t first = 0, columns = 0;
  int64_t row_extent = 1, column_extent = 1;
};

// For each unit, over its cells in the piece, with w the value and g the gradient:
//   sums[unit] += { sum of g w, sum of (g w)^2, sum of w^2 },
// in a fixed order. Without `grads` the first two stay.
struct UnitSumsArgs {
  ConstTensorView values;                    // [n] F32
  ConstTensorView grads = {};                // [n] F32, or empty
  TensorView row_sums = {}, column_sums = {};  // [units, 3] F64, or empty
  CellUnits units;
};

// values *= row_factors[row's unit] * column_factors[column's unit], where given; a factor of zero
// stores zero, whatever was there.
struct ScaleUnitsArgs {
  TensorView values;                                   // [n] F32 or the compute dtype
  ConstTensorView row_factors = {}, column_factors = {};  // [units] F32, or empty
  CellUnits units;
};

class PruningOps {
 public:
  virtual ~PruningOps() = default;
  virtual void UnitSums(const UnitSumsArgs& args, Stream& stream) = 0;
  virtual void ScaleUnits(const ScaleUnitsArgs& args, Stream& stream) = 0;
};

// ---------------------------------------------------------------------------------- topology

// A unit is what a topology rule keeps or drops: a cell of an unstructured layout, a block of a
// blocked one. Units of a weight are counted row by row over its grid, stored or not. A mark is a
// small number a unit, U8; what it says is the caller's choice.

// marks = 1 for units that are stored, 0 for others.
struct MarkStoredArgs {
  const PreparedLayout* weight = nullptr;
  TensorView marks = {};  // [units]
};

// scores[unit] = sum over the unit's cells inside the weight of values * dense * column_factors, as
// far as they are given, or of its absolute value. Of stored units; those of others stay as they
// are.
struct ScoreUnitsArgs {
  const PreparedLayout* weight = nullptr;
  ConstTensorView values = {};          // [stored_count] F32, or empty
  ConstTensorView dense = {};           // [out, in] F32, or empty
  ConstTensorView column_factors = {};  // [in] F32, or empty
  bool absolute = true;
  bool every_unit = false;  // also units that are not stored, which have no `values`
  TensorView scores;        // [units] F32
};

// The units of one weight among which to choose.
struct SelectionPool {
  ConstTensorView scores = {};  // [units] F32; empty: all are equal
  TensorView marks;             // [units]
  uint64_t stream = 0;          // of the draws that order equal scores
};

// Of the units marked `from` in all pools together, exactly `count` (at most all) become `chosen`:
// those of highest score; the others become `rest`. -0 is 0 and NaN ranks lowest. Equal scores go
// by RandomBits(seed, stream, unit), lowest first, so that no row is favoured, and equal draws by
// pool and unit: the same units on every backend, for the same scores.
struct SelectHighestArgs {
  std::span<const SelectionPool> pools;  // read during the call only
  int64_t count = 0;
  bool magnitudes = false;  // |score| counts
  uint8_t from = 1, chosen = 1, rest = 0;
  uint64_t seed = 0;
  TensorView chosen_counts = {};  // [pools] I64: units of each marked `chosen` afterwards; or empty
};

class TopologyOps {
 public:
  virtual ~TopologyOps() = default;
  virtual void MarkStored(const MarkStoredArgs& args, Stream& stream) = 0;
  virtual void ScoreUnits(const ScoreUnitsArgs& args, Stream& stream) = 0;
  virtual void SelectHighest(const SelectHighestArgs& args, Stream& stream) = 0;
  // The layout of `like`'s kind (unstructured or blocked), shape and blocks that stores the units
  // marked 1 of `marks` [units], as PrepareLayout prepares it. Waits for `stream`, and allocates.
  virtual std::unique_ptr<PreparedLayout> LayoutOfMarks(const SparseLayout& like,
                                                        ConstTensorView marks, Stream& stream) = 0;
};

// ---------------------------------------------------------------------------------- the backend

class Backend : public DenseOps,
                public SparseOps,
                public AttentionOps,
                public LossOps,
                public OptimizerOps,
                public PruningOps,
                public StateOps,
                public TopologyOps {
 public:
  virtual Device& device() = 0;
  // Asks for the same bits at every call of every operation, also where that costs time or memory
  // (CUDA's attention backward, and matrix products whose algorithm is else the fastest of some
  // that were timed; all else, and the CPU, is so anyway). Off at first.
  virtual void set_deterministic(bool deterministic) = 0;
  // Whether one product with several dense weights, theirs one under the other, is preferred to one
  // with each. The CPU keeps them apart: where they lie so depends on the ranks, through buckets,
  // and what it computes must not.
  virtual bool joins_products() const { return false; }
};

}  // namespace filigree
