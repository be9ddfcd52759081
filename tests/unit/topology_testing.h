// What the tests of the topology engine share.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/topology/rule.h"
#include "kernels/sparse/unit_layout.h"
#include "trainer/topology/update.h"

namespace filigree {

// A rule's defaults at this sparsity, on single weights.
inline SparsitySpec RuleSpec(const char* rule, double sparsity) {
  SparsitySpec spec = FindTopologyRule(rule)->defaults();
  spec.rule = rule;
  spec.parameterisation = "masked";
  spec.sparsity = sparsity;
  if (spec.initial_sparsity < 0) spec.initial_sparsity = sparsity;
  return spec;
}

// 1 for each unit that is stored.
inline std::vector<uint8_t> LiveUnits(const SparseLayout& layout) {
  std::vector<uint8_t> live(UnitCount(layout), 0);
  const auto offsets = layout.row_offsets();
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      live[row * layout.grid_cols() + layout.columns()[p]] = 1;
    }
  }
  return live;
}

// A weight with scores of all its units; without scores to grow by it grows at random.
struct ScoredWeight : TopologyWeight {
  std::vector<float> keep_scores = {}, grow_scores = {};
};

// Such scores, given to the engine as they are.
class GivenScores final : public ScoreSource {
 public:
  GivenScores(std::span<const ScoredWeight> weights, Device& device, Stream& stream)
      : weights_(weights), device_(device), stream_(stream) {}

  ConstTensorView Keep(size_t weight, const PreparedLayout&, TensorView memory) override {
    return Copy(weights_[weight].keep_scores, memory);
  }
  ConstTensorView Grow(size_t weight) override {
    const std::vector<float>& scores = weights_[weight].grow_scores;
    if (scores.empty()) return {};
    grow_ = DeviceBuffer();
    grow_ = device_.Allocate(scores.size() * sizeof(float), "test");
    return Copy(scores, grow_.View(DType::kF32, static_cast<int64_t>(scores.size())));
  }

 private:
  ConstTensorView Copy(const std::vector<float>& scores, TensorView memory) {
    device_.CopyAsync(memory, ConstTensorView(scores.data(), DType::kF32, {memory.size()}),
                      stream_);
    stream_.Synchronize();
    return memory;
  }

  std::span<const ScoredWeight> weights_;
  Device& device_;
  Stream& stream_;
  DeviceBuffer grow_;
};

inline std::vector<SparseLayout> ProposeGiven(std::span<const ScoredWeight> weights,
                                              const SparsitySpec& spec,
                                              const TopologyAction& action, Growth growth,
                                              uint64_t seed, int64_t step, Backend& backend) {
  const std::unique_ptr<Stream> stream = backend.device().NewStream();
  const std::vector<TopologyWeight> plain(weights.begin(), weights.end());
  GivenScores scores(weights, backend.device(), *stream);
  return ProposeLayouts(plain, spec, action, growth, seed, step, scores, backend, *stream);
}

// The same on the CPU.
inline std::vector<SparseLayout> ProposeGiven(std::span<const ScoredWeight> weights,
                                              const SparsitySpec& spec,
                                              const TopologyAction& action, Growth growth,
                                              uint64_t seed, int64_t step) {
  CpuDevice device;
  CpuBackend backend(device);
  return ProposeGiven(weights, spec, action, growth, seed, step, backend);
}

}  // namespace filigree
