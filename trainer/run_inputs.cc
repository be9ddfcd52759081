#include "trainer/run_inputs.h"

#include <algorithm>

#include "trainer/phase_data.h"
#include "trainer/resume.h"
#include "trainer/run_directory.h"
#include "trainer/sample_tree.h"
#include "trainer/teacher.h"

namespace filigree {
namespace {

Status CheckWorld(const RunSpec& run, const Communicator& communicator) {
  if (run.required_ranks > 0 && run.required_ranks != communicator.size()) {
    return InvalidInput("parallel.ranks asks for " + std::to_string(run.required_ranks) +
                        " ranks, this run has " + std::to_string(communicator.size()) +
                        "; start it with mpirun -np " + std::to_string(run.required_ranks));
  }
  return OkStatus();
}

// The deterministic mode of CPUs sums whole gradients in F32.
Status CheckGradients(const RunSpec& run, const Device& device) {
  const bool wide = run.grad_dtype == DType::kF32 && run.wire_dtype == DType::kF32;
  if (wide || !SumsInTree(run, device)) return OkStatus();
  return InvalidInput(
      "parallel.deterministic on a CPU sums gradients in F32 alone; leave grad_dtype and "
      "wire_dtype out, or deterministic");
}

// And it sums them all before any update.
Status CheckUpdates(const RunSpec& run, const Device& device) {
  if (!SumsInTree(run, device)) return OkStatus();
  for (const PhaseSpec& phase : run.phases) {
    if (phase.pruning) {
      return InvalidInput(
          "phase " + phase.name +
          " has pruning, whose scores are summed rank by rank: "
          "parallel.deterministic on a CPU cannot promise the same bits at any number "
          "of ranks; leave it out");
    }
    if (!phase.optimizer.per_layer) continue;
    return InvalidInput(
        "phase " + phase.name +
        " has optimizer.update PER_LAYER, which cannot go with "
        "parallel.deterministic on a CPU; take update GLOBAL or leave deterministic "
        "out");
  }
  return OkStatus();
}

}  // namespace

Status CheckDevice(const RunSpec& run, const Device& device) {
  RETURN_IF_ERROR(CheckGradients(run, device));
  return CheckUpdates(run, device);
}

StatusOr<RunInputs> OpenRunInputs(const TrainOptions& options, const Communicator& communicator,
                                  const Device& device) {
  const RunSpec& run = options.run;
  RunInputs inputs;
  RETURN_IF_ERROR(CheckWorld(run, communicator));
  RETURN_IF_ERROR(CheckDevice(run, device));
  if (communicator.rank() == 0) RETURN_IF_ERROR(CheckWritable(options.run_dir));
  ASSIGN_OR_RETURN(inputs.start, FindStart(run, options.run_dir, options.resume));
  const bool returns = std::any_of(run.phases.begin(), run.phases.end(),
                                   [](const PhaseSpec& phase) { return phase.rewind_step == 0; });
  if (!run.init_from.empty() && (!inputs.start || returns)) {
    ASSIGN_OR_RETURN(inputs.initial, OpenInitialModel(run));
  }
  RETURN_IF_ERROR(OpenTeachers(run).status());
  for (const PhaseSpec& phase : run.phases) {
    RETURN_IF_ERROR(OpenPhaseData(phase, run.model, run.seed).status());
  }
  inputs.tokenizer_dir = run.phases.front().data.prepared;
  if (!inputs.tokenizer_dir.empty()) {
    ASSIGN_OR_RETURN(inputs.tokenizer, LoadTokenizer(inputs.tokenizer_dir));
  }
  return inputs;
}

}  // namespace filigree
