#include "trainer/checkpoint/pruning_tensors.h"

namespace filigree {
namespace {

template <typename T>
StatusOr<std::vector<T>> Read(const SafetensorsFile& file, const char* name) {
  const TensorEntry* tensor = file.Find(name);
  if (tensor == nullptr) {
    return InvalidInput(file.path() + ": tensor \"" + name + "\" is missing");
  }
  return ReadElements<T>(*tensor);
}

}  // namespace

PruningTensors::PruningTensors(const PruningProgress& progress)
    : progress_(progress),
      counters_{progress.batches, progress.phase, progress.initial_parameters,
                static_cast<int64_t>(progress.done)} {}

std::vector<TensorSpec> PruningTensors::specs() const {
  const auto units = static_cast<int64_t>(progress_.zero_at.size());
  return {{"zero_at", DType::kI64, {units}},
          {"smoothed", DType::kF64, {static_cast<int64_t>(progress_.smoothed.size())}},
          {"counters", DType::kI64, {static_cast<int64_t>(counters_.size())}},
          {"level", DType::kF64, {1}}};
}

std::vector<std::span<const std::byte>> PruningTensors::bytes() const {
  const auto bytes = [](const auto& values) { return std::as_bytes(std::span(values)); };
  return {bytes(progress_.zero_at), bytes(progress_.smoothed), bytes(counters_),
          std::as_bytes(std::span(&progress_.level, 1))};
}

StatusOr<PruningProgress> ReadPruning(const SafetensorsFile& file) {
  PruningProgress progress;
  ASSIGN_OR_RETURN(progress.zero_at, Read<int64_t>(file, "zero_at"));
  ASSIGN_OR_RETURN(progress.smoothed, Read<double>(file, "smoothed"));
  ASSIGN_OR_RETURN(const std::vector<int64_t> counters, Read<int64_t>(file, "counters"));
  ASSIGN_OR_RETURN(const std::vector<double> level, Read<double>(file, "level"));
  // Checkpoints of before may lack the last counter.
  if (counters.size() < 3 || counters.size() > 4 || level.size() != 1) {
    return InvalidInput(file.path() + ": its tensors do not fit each other");
  }
  progress.batches = counters[0];
  progress.phase = counters[1];
  progress.initial_parameters = counters[2];
  progress.done = counters.size() == 4 && counters[3] != 0;
  progress.level = level[0];
  return progress;
}

}  // namespace filigree
