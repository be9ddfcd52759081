// Both ends of the decoder: the embedding, and the head with its loss. Tied models share the
// matrix.
#pragma once

#include "trainer/model/activation_arena.h"
#include "trainer/model/model.h"
#include "trainer/model/parameter_table.h"

namespace filigree {

// The first parameters of a model: the token table, and learned positions where the family has
// them.
class EmbeddingModule {
 public:
  EmbeddingModule(const ModelSpec& spec, Backend& backend, ParameterTable& table);

  int table_index() const { return tokens_; }
  // out [T, D].
  void Forward(const MicroBatch& batch, TensorView out, Stream& stream);
  void Backward(const MicroBatch& batch, ConstTensorView dout, Stream& stream);

 private:
  ConstTensorView Positions() const;
  // Sets a parameter's gradient to zero where the model overwrites gradients.
  void ZeroUnlessAdded(int index, Stream& stream);

  const ModelSpec& spec_;
  Backend& backend_;
  ParameterTable& table_;
  int tokens_ = -1, positions_ = -1;
};

// Logits and cross-entropy. Logits of all tokens at once would dwarf every other activation of a
// small model, so rows go through in chunks, and in training a chunk's gradients are taken at once.
class HeadModule {
 public:
  // `embedding_index` is the parameter that a tied head shares.
  HeadModule(const ModelSpec& spec, int embedding_index, Backend& backend, ParameterTable& table);

  // Rows of a chunk of `tokens`, at least a whole sequence: 1024 on a CPU; on a GPU up to 16384, as
  // far as 2 GiB of logits go. Never fewer for more tokens, so that memory reserved for the largest
  // micro-batch serves all.
  int64_t ChunkRows(int64_t tokens, int64_t seq_len) const;

  // Losses [T] of x [T, D] against the batch's targets, through `logits` [chunk rows, Vp]. Where
  // loss_scale is not zero, also dx [T, D] (overwritten) and the head's gradient.
  void Loss(ConstTensorView x, const MicroBatch& batch, double loss_scale, TensorView logits,
            TensorView losses, TensorView dx, Stream& stream);
  // logits [T, Vp] of x [T, D].
  void Logits(ConstTensorView x, TensorView logits, Stream& stream);

 private:
  TensorView Weight() const;  // [Vp, D]
  TensorView Grads() const;

  const ModelSpec& spec_;
  Backend& backend_;
  ParameterTable& table_;
  int weight_ = -1;
};

}  // namespace filigree
