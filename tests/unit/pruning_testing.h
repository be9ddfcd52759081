// A unit's members, and a training state on made-up text, for tests of pruning.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/second_order.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {

// A unit's rows and columns, tensor by tensor.
struct UnitMember {
  std::string parameter;
  bool rows = false;  // else columns
  int64_t begin = 0, count = 0;
};
inline std::vector<UnitMember> MembersOf(const UnitTable& table, int64_t unit) {
  std::vector<UnitMember> members;
  for (const auto& [name, units] : table.parameters()) {
    for (const bool rows : {true, false}) {
      const AxisUnits& axis = rows ? units.rows : units.columns;
      if (axis.set < 0) continue;
      const UnitSet& set = table.sets()[axis.set];
      const int64_t index = unit - set.first;
      if (index < 0 || index >= set.count) continue;
      members.push_back(
          {.parameter = name, .rows = rows, .begin = index * axis.extent, .count = axis.extent});
    }
  }
  return members;
}

// The second-order update of one block of a weight on the host: `weight` [rows, pitch] in place,
// columns [begin, begin + block) of it, of which `gone` leave. False where nothing was done.
inline bool CompensateColumns(std::span<float> weight, int64_t rows, int64_t pitch, int64_t begin,
                              std::span<const float> gram, int64_t block,
                              std::span<const int64_t> gone, double damping) {
  const ColumnUpdate update = SolveColumns(gram, block, gone, damping);
  if (update.rest.empty()) return false;
  const auto columns = [&](std::span<const int64_t> offsets) {
    std::vector<int32_t> of_weight;
    for (const int64_t c : offsets) of_weight.push_back(static_cast<int32_t>(begin + c));
    return of_weight;
  };
  const auto view = [](const auto& host, DType dtype) {
    return ConstTensorView(host.data(), dtype, {static_cast<int64_t>(host.size())});
  };
  const std::vector<int32_t> leave = columns(gone), stay = columns(update.rest);
  CpuDevice device;
  CpuBackend backend(device);
  backend.AddColumns({.weight = TensorView(weight.data(), DType::kF32, {rows, pitch}),
                      .gone = view(leave, DType::kI32),
                      .rest = view(stay, DType::kI32),
                      .factors = view(update.factors, DType::kF64)},
                     *device.NewStream());
  return true;
}

class PruningTrainee {
 public:
  // Each rank has `sequences` of a step's samples.
  PruningTrainee(const RunSpec& run, Communicator& world, int64_t row_alignment = 1,
                 int64_t sequences = 1)
      : run_(run),
        world_(world),
        device_(DType::kF32, row_alignment),
        stream_(device_.NewStream()),
        step_runner_(run.phases[0].batch, backend_, *stream_),
        sequences_(sequences) {
    state_ = std::make_unique<TrainingState>(run_, 0, std::map<std::string, SparseLayout>{}, world_,
                                             backend_, *stream_);
  }

  // Takes step `step` and returns the loss, summed over all ranks' tokens.
  double Step(double rate, int64_t step) {
    const StepResult result =
        step_runner_.Run(*state_, Samples(step), run_.phases[0].optimizer, rate, step + 1);
    EXPECT_FALSE(result.update.skipped);
    state_->exchange().WaitAllValues(*stream_);
    return Sum(result.loss_sum);
  }
  // The same without an update: gradients of step `step`'s samples.
  double Gradients(int64_t step) {
    return Sum(step_runner_.Gradients(*state_, Samples(step)).loss_sum);
  }

  std::vector<float> Gather(int parameter, StateKind kind) {
    const auto bytes = GatherSegment(state_->buffer(), parameter, kind, world_, *stream_);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  double tokens_per_step() const {
    return static_cast<double>(run_.phases[0].batch.seq_len * sequences_ * world_.size());
  }
  TrainingState& state() { return *state_; }
  Communicator& world() { return world_; }
  Backend& backend() { return backend_; }
  Stream& stream() { return *stream_; }

 private:
  double Sum(double loss) {
    world_.AllReduceHost(std::span<double>(&loss, 1), ReduceOp::kSum);
    return loss;
  }

  // A language to learn: mostly what a random table says of the last two tokens, which takes
  // feed-forward channels to hold; often what stood four places before, which takes heads.
  int32_t Next(const std::vector<int32_t>& before, uint64_t stream, uint64_t index) const {
    const auto vocabulary = static_cast<uint64_t>(run_.model.vocab_size);
    const double choice = RandomUniform(run_.seed, stream, 2 * index);
    const uint64_t random = RandomBelow(run_.seed + 1, stream, 2 * index + 1, vocabulary);
    if (before.size() < 4 || choice < 0.1) return static_cast<int32_t>(random);
    if (choice < 0.4) return before[before.size() - 4];
    const auto last = static_cast<uint64_t>(before.back());
    const auto pair = vocabulary * last + static_cast<uint64_t>(before[before.size() - 2]);
    return static_cast<int32_t>(RandomBelow(run_.seed + 2, 0, pair, vocabulary));
  }

  StepSamples Samples(int64_t step) {
    const int64_t seq_len = run_.phases[0].batch.seq_len;
    tokens_.clear();
    targets_.clear();
    for (int64_t s = 0; s < sequences_; ++s) {
      const auto stream = static_cast<uint64_t>((step * 64 + world_.rank()) * 64 + s);
      std::vector<int32_t> text;
      for (int64_t i = 0; i <= seq_len; ++i) {
        text.push_back(Next(text, stream, static_cast<uint64_t>(i)));
      }
      tokens_.insert(tokens_.end(), text.begin(), text.end() - 1);
      targets_.insert(targets_.end(), text.begin() + 1, text.end());
    }
    return {.tokens = tokens_.data(),
            .targets = targets_.data(),
            .sequences = sequences_,
            .valid_tokens = tokens_per_step()};
  }

  const RunSpec run_;
  Communicator& world_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_;
  TrainStep step_runner_;
  const int64_t sequences_;
  std::unique_ptr<TrainingState> state_;
  std::vector<int32_t> tokens_, targets_;
};

}  // namespace filigree
