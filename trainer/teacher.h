// The frozen teacher of a phase that distils (DistillationConfig): a forward pass beside the
// student's, in the same micro-batches. It has values and inference activations alone, whole on
// every rank.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/inference.h"
#include "trainer/spec.h"

namespace filigree {

class Teacher final : public TeacherLogits {
 public:
  // Reads the phase's teacher, which OpenTeachers found good, for micro-batches of the phase.
  static StatusOr<std::unique_ptr<Teacher>> Load(const PhaseSpec& phase, Backend& backend,
                                                 Stream& stream);

  // Runs the teacher over a micro-batch; its logits are then there for the student's pass.
  void Forward(const MicroBatch& batch, Stream& stream);
  int64_t max_rows() const override { return loaded_->model().MaxLogitRows(); }
  ConstTensorView Rows(int64_t begin, int64_t rows, Stream& stream) override {
    return loaded_->model().HiddenLogits(begin, rows, stream);
  }
  // Executed, of one forward pass.
  double flops_per_token(int64_t seq_len) const {
    return ForwardFlopsPerToken(loaded_->model(), seq_len).executed;
  }

 private:
  std::unique_ptr<InferenceModel> loaded_;
};

// What the run's teachers are, by their path. InvalidInput where one cannot be read, has another
// vocabulary or tokenizer than the student, or fewer positions than the phase's sequences.
StatusOr<std::map<std::string, CheckpointInfo>> OpenTeachers(const RunSpec& run);

// What a teacher costs a rank.
struct TeacherCost {
  int64_t memory_bytes = 0;    // values, copies for compute and activations
  double flops_per_token = 0;  // executed: one forward pass
};
TeacherCost CostOfTeacher(const CheckpointInfo& teacher, const BatchSpec& batch, Backend& backend);

}  // namespace filigree
