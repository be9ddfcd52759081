// What the published SLTrain did in 50 steps (tests/parity/golden/sltrain_published, written by
// make_published_sltrain.py; conditions.json lists what its losses depend on), and the same 50
// steps by ours: its checkpoint through the importer, its rows, its learning rates.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/bootstrap.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/export/sltrain_checkpoint.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {

class PublishedSltrain {
 public:
  // `source_dir`: the repository.
  explicit PublishedSltrain(const std::string& source_dir)
      : directory_(source_dir + "/tests/parity/golden/sltrain_published"),
        reader_(OpenSltrain(directory_).value()),
        run_(SafetensorsFile::Open(directory_ + "/run.safetensors").value()) {
    const TensorEntry& ids = Find("input_ids");
    steps_ = ids.shape[0];
    rows_ = ids.shape[1];
    length_ = ids.shape[2];
    ids_ = ReadElements<int32_t>(ids).value();
  }

  // Of all steps, before the step's update, in "f64", "f32" or "bf16".
  std::vector<double> losses(const std::string& precision) const {
    return ReadElements<double>(Find("losses_" + precision)).value();
  }
  const CheckpointReader& initial() const { return *reader_; }

  // The configuration of the published run. `micro_batch`: rows of one forward and backward.
  RunSpec Run(int64_t micro_batch) const {
    RunSpec run;
    run.model = reader_->info().model;
    run.model.max_positions = length_;
    PhaseSpec phase;
    phase.steps = steps_;
    phase.batch = {.seq_len = length_,
                   .tokens_per_step = rows_ * length_,
                   .micro_batch_sequences = micro_batch};
    phase.optimizer = {.beta2 = 0.999, .weight_decay = 0, .clip_norm = 0};
    SparsitySpec sparsity;
    sparsity.parameterisation = "sparse_plus_low_rank";
    sparsity.sparsity = 0.97;
    sparsity.rank = 32;
    sparsity.alpha = 8;
    phase.sparsity = {sparsity};
    run.phases = {phase};
    return run;
  }

  // Our losses of all steps.
  std::vector<double> Train(const RunSpec& run, Backend& backend, Stream& stream) const {
    const auto communicator = MakeSingleProcessCommunicator();
    std::map<std::string, SparseLayout> layouts;
    for (const Parameter& parameter : reader_->info().parameters) {
      layouts.emplace(parameter.name, parameter.layout);
    }
    TrainingState state(run, 0, layouts, *communicator, backend, stream);
    const Status loaded = state.Load(*reader_, /*moments=*/false, stream);
    CHECK(loaded.ok()) << loaded.message();
    const std::vector<int32_t> targets = Targets();
    const auto rates = ReadElements<double>(Find("learning_rates")).value();
    const PhaseSpec& phase = run.phases[0];
    const int64_t step_size = rows_ * length_;
    TrainStep step(phase.batch, backend, stream);
    std::vector<double> losses;
    for (int64_t i = 0; i < steps_; ++i) {
      const int32_t* step_targets = targets.data() + i * step_size;
      const auto valid =
          static_cast<double>(step_size - std::count(step_targets, step_targets + step_size, -1));
      const StepResult result = step.Run(state,
                                         {.tokens = ids_.data() + i * step_size,
                                          .targets = step_targets,
                                          .sequences = rows_,
                                          .valid_tokens = valid},
                                         phase.optimizer, rates[i], i + 1);
      losses.push_back(result.loss_sum / valid);
    }
    return losses;
  }

 private:
  static constexpr int32_t kPadding = 0;

  const TensorEntry& Find(const std::string& name) const {
    const TensorEntry* entry = run_.Find(name);
    CHECK(entry != nullptr) << directory_ << ": " << name;
    return *entry;
  }

  // The next id of the row; none for padding, nor in the last position.
  std::vector<int32_t> Targets() const {
    std::vector<int32_t> targets(ids_.size(), -1);
    for (int64_t i = 0; i + 1 < static_cast<int64_t>(ids_.size()); ++i) {
      if ((i + 1) % length_ != 0 && ids_[i + 1] != kPadding) targets[i] = ids_[i + 1];
    }
    return targets;
  }

  std::string directory_;
  std::unique_ptr<CheckpointReader> reader_;
  SafetensorsFile run_;
  int64_t steps_ = 0, rows_ = 0, length_ = 0;
  std::vector<int32_t> ids_;  // [steps, rows, length]
};

// |a / b - 1| of each step.
inline std::vector<double> RelativeDifferences(const std::vector<double>& a,
                                               const std::vector<double>& b) {
  CHECK_EQ(a.size(), b.size());
  std::vector<double> differences;
  for (size_t i = 0; i < a.size(); ++i) differences.push_back(std::abs(a[i] / b[i] - 1));
  return differences;
}

}  // namespace filigree
