// A decoder-only language model with explicit forward and backward passes (no autograd).
//
// Order of use: Create, lay parameters() out in a FlatBuffer, Bind, ReserveActivations, then per
// micro-batch ForwardLoss or ForwardBackward. Gradients add into the flat buffer's grads, those of
// the first micro-batch after StartGradients overwrite them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/flat_buffer.h"
#include "kernels/backend.h"
#include "trainer/linear/linear.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// The logits of a frozen teacher for the tokens of one micro-batch.
class TeacherLogits {
 public:
  virtual ~TeacherLogits() = default;
  // At most so many rows at a time.
  virtual int64_t max_rows() const = 0;
  // Those of rows [begin, begin + rows) of the batch, padding included; valid until the next call.
  virtual ConstTensorView Rows(int64_t begin, int64_t rows, Stream& stream) = 0;
};

// Turns a training pass's loss into DistillationLoss (kernels/backend.h).
struct Distillation {
  TeacherLogits* teacher = nullptr;
  double temperature = 1, alpha = 0;
  TensorView divergences;  // [B * S], written
};

// One micro-batch on the device: B sequences of S tokens, row-major.
struct MicroBatch {
  ConstTensorView tokens;   // [B * S] I32
  ConstTensorView targets;  // [B * S] I32, -1 masked; empty for Logits
  int64_t seq_len = 0;
  // [1] F32 or empty: a training pass's loss scale on the device, read there when the pass runs.
  ConstTensorView loss_scale = {};
  const Distillation* distillation = nullptr;  // of ForwardBackward alone; nullptr: none
};

// Called by the model with an index into parameters(). Either may be empty.
struct ParameterHooks {
  // Before the first read of a parameter after ValuesChanged (ZeRO-1: wait for its all-gather).
  std::function<void(int parameter)> before_use;
  // Backward has added its last contribution of this micro-batch to the parameter's gradient.
  std::function<void(int parameter)> grad_ready;
};

// What a training pass submits beside what follows from its arguments.
struct PassState {
  bool materialises = false;  // values changed since the last pass: compute copies are made
  bool overwrites = false;    // gradients; else it adds to them
  bool operator==(const PassState&) const = default;
};

// The linears of a decoder, in order of creation: "layers.0.attention.q", ...
std::vector<LinearSpec> LinearSpecs(const ModelSpec& spec);

class Model {
 public:
  // `sparsity` entries were validated. A weight's layout is the one that `layouts` gives for its
  // name (a resumed run), else drawn from `seed`.
  static std::unique_ptr<Model> Create(const ModelSpec& spec,
                                       const std::vector<SparsitySpec>& sparsity, uint64_t seed,
                                       const std::map<std::string, SparseLayout>& layouts,
                                       Backend& backend);
  virtual ~Model() = default;

  virtual const ModelSpec& spec() const = 0;
  // In creation order (embedding first, head last).
  virtual const std::vector<Parameter>& parameters() const = 0;
  virtual std::vector<const Linear*> linears() const = 0;

  // Gives parameters their memory: parameter i is segment i of `buffer`, which must outlive the
  // model's use. Compute copies and backward scratch are allocated here.
  virtual void Bind(FlatBuffer& buffer) = 0;

  // Of all linears, bound to a buffer of this layout: layouts and copies summed, the scratch that
  // they share.
  virtual LinearMemory linear_memory(const FlatLayout& layout) const = 0;
  // Of a training step over `tokens` tokens (LinearGroup::step_use): what their products come to
  // hold, summed, and the most scratch of one.
  virtual PreparedLayout::StepUse linear_step_use(int64_t tokens,
                                                  const FlatLayout& layout) const = 0;
  // Device bytes of activations for micro-batches of at most B x S, without allocating; training
  // also counts what backward needs.
  virtual size_t ActivationBytes(int64_t sequences, int64_t seq_len, bool training) const = 0;
  virtual void ReserveActivations(int64_t sequences, int64_t seq_len, bool training) = 0;
  // Frees them: no pass may follow. Before a second state of the same model is built.
  virtual void ReleaseActivations() = 0;

  virtual void set_hooks(ParameterHooks hooks) = 0;
  // Values were written from outside: every linear is materialised again before its next use.
  virtual void ValuesChanged() = 0;

  // Backward also adds to these statistics, by name of the weight's parameter, until the next call
  // (an empty map: no more). The views and vectors must stay alive until then.
  virtual void CollectStatistics(const std::map<std::string, LinearStatistics>& statistics) = 0;

  // Per-token losses [B * S] of the batch.
  virtual void ForwardLoss(const MicroBatch& batch, TensorView losses, Stream& stream) = 0;
  // The next ForwardBackward overwrites grads, whatever they hold: no pass is spent on zeroing
  // them.
  virtual void StartGradients() = 0;
  // As ForwardLoss, then gradients of loss_scale * sum of losses are added into grads.
  virtual void ForwardBackward(const MicroBatch& batch, double loss_scale, TensorView losses,
                               Stream& stream) = 0;
  // Of the next ForwardBackward; nothing where its work is not told by a PassState: it collects
  // statistics, or the values of some parameters alone are new.
  virtual std::optional<PassState> NextPass() const = 0;
  // Makes the next ForwardBackward one of that state: for one that was called to be recorded, and
  // none of whose work has begun.
  virtual void SetNextPass(const PassState& state) = 0;
  // Stands for a ForwardBackward whose work was submitted otherwise, from a recording of one of the
  // same arguments and PassState. Calls no hooks.
  virtual void PassWasReplayed() = 0;
  // Runs the layers over a batch, whose logits HiddenLogits then gives: those of rows
  // [begin, begin + rows), [rows, Vp], at most MaxLogitRows() rows at a time. Views of the
  // activation memory: logits are valid until the next HiddenLogits, all until the next pass.
  virtual void ForwardHidden(const MicroBatch& batch, Stream& stream) = 0;
  virtual int64_t MaxLogitRows() const = 0;
  virtual ConstTensorView HiddenLogits(int64_t begin, int64_t rows, Stream& stream) = 0;
  // Logits [S, V] of a batch of one sequence, as a view of the activation memory, valid until the
  // next pass.
  virtual ConstTensorView Logits(const MicroBatch& batch, Stream& stream) = 0;
};

// Forward operations per token at sequence length S, for the whole model: linears by the three
// kinds, attention counted in full (4 S D a layer, not halved for causality) and logits 2 V D in
// each.
LinearFlops ForwardFlopsPerToken(const Model& model, int64_t seq_len);

}  // namespace filigree
