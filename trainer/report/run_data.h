// A run directory as the report sees it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree::report {

// Numbers that are missing or were not finite are NaN.
struct StepPoint {
  double step = 0, tokens = 0;
  double loss = 0, lr = 0, sparsity = 0, tokens_per_second = 0, step_ms = 0, exchanged_bytes = 0;
};

struct EvaluationPoint {
  double step = 0, tokens = 0, loss = 0;
};

struct PhaseData {
  std::string name;         // empty where the run does not say
  double begin_tokens = 0;  // seen before it
  std::vector<StepPoint> steps;
  std::vector<EvaluationPoint> evaluations;
};

struct LayerData {
  std::string name;
  double sparsity = 0, stored = 0, logical = 0;
};

struct RunData {
  std::string directory;
  std::string label;  // the run's name; ReadRuns makes labels differ
  std::string config_text;
  std::vector<PhaseData> phases;  // in order; at least one step in all
  std::vector<LayerData> layers;  // of the sparsest phase; empty where unknown
  std::optional<double> unigram_entropy;
};

// InvalidInput: a directory without metrics, or a damaged file (path and line).
StatusOr<std::vector<RunData>> ReadRuns(const std::vector<std::string>& directories);

}  // namespace filigree::report
