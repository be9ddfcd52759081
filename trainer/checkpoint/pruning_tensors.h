// The progress of structured pruning as the tensors of pruning.safetensors.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/pruning/progress.h"

namespace filigree {

inline constexpr const char* kPruningFile = "pruning.safetensors";

// For writing; `progress` must outlive it.
class PruningTensors {
 public:
  explicit PruningTensors(const PruningProgress& progress);
  std::vector<TensorSpec> specs() const;
  // In the order of the specs.
  std::vector<std::span<const std::byte>> bytes() const;

 private:
  const PruningProgress& progress_;
  std::array<int64_t, 4> counters_;  // batches, phase, initial_parameters, done
};

StatusOr<PruningProgress> ReadPruning(const SafetensorsFile& file);

}  // namespace filigree
