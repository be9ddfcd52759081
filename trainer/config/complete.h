// Defaults: a complete configuration, and its phases with what they inherit.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "run.pb.h"
#include "trainer/config/problems.h"
#include "trainer/config/run_config.h"

namespace filigree::config {

// What one phase runs with: the run's defaults with the phase's own fields merged over them.
struct MergedPhase {
  std::string path;  // "phase[0]."; empty for a run without phases, which validation still checks
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  DistillationConfig distillation;  // all unset where the configuration has none
  std::vector<SparsityConfig> sparsity;
  std::optional<PruningConfig> pruning = std::nullopt;
  // 0 where the phase's length is missing or does not come out.
  int64_t steps = 0;
};

// The place of a field of a phase: in the phase, else in the run's defaults, else of the message
// around it there, else the phase.
Place FindInPhase(const Origins& origins, const MergedPhase& phase, const std::string& path);

// Fills every default of `config` that has one and returns its phases (one pseudo-phase where there
// are none). Reads the manifest of prepared data where the vocabulary or the delimiter is missing.
// What a sparsity entry leaves out comes from its rule's defaults in `known`.
std::vector<MergedPhase> Complete(const Origins& origins, const KnownNames& known,
                                  RunConfig* config, Problems* problems);

}  // namespace filigree::config
