// A model loaded for evaluation and generation: dense weights, no gradients, no optimizer state.
#pragma once

#include <memory>

#include "comm/flat_buffer.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/model/model.h"

namespace filigree {

// The model that evaluation runs, without memory of its own: every weight is dense, but for factors
// with a nonlinearity between them. And its flat layout.
std::unique_ptr<Model> CreateInferenceModel(const CheckpointInfo& info, Backend& backend);
FlatLayout InferenceLayout(const Model& model);

class InferenceModel {
 public:
  // Every weight is merged to a dense one, as an export would be, so both compute the same
  // function; factors with a nonlinearity between them, which have no export, stay. Activations are
  // reserved for `sequences` x `seq_len`.
  static StatusOr<std::unique_ptr<InferenceModel>> Load(const CheckpointReader& reader,
                                                        int64_t sequences, int64_t seq_len,
                                                        Backend& backend, Stream& stream);
  Model& model() { return *model_; }

 private:
  std::unique_ptr<Model> model_;
  std::unique_ptr<FlatBuffer> buffer_;
};

}  // namespace filigree
