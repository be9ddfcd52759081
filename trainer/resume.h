// Where a run starts: from a checkpoint of its own, from another model, or from fresh weights.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/spec.h"

namespace filigree {

// `resume` is "auto" (the newest complete checkpoint of RUN, if any), "none" (fresh weights;
// refused where RUN has checkpoints already, so that nothing is overwritten) or the path of a
// checkpoint or run. Returns nullptr for fresh weights. The checkpoint must fit the run: same
// model, same seed, step within the run.
StatusOr<std::unique_ptr<CheckpointReader>> FindStart(const RunSpec& run,
                                                      const std::string& run_dir,
                                                      const std::string& resume);

// The model that `run` starts from (RunSpec::init_from, not empty). InvalidInput where it is none,
// is another model than the run's (every difference by name), has another tokenizer than the data,
// or has weights that the first phase cannot take over.
StatusOr<std::unique_ptr<CheckpointReader>> OpenInitialModel(const RunSpec& run);

// The layouts that the first phase keeps of that model's: of the same kind, under rules that
// inherit.
std::map<std::string, SparseLayout> InitialLayouts(const CheckpointInfo& initial,
                                                   const RunSpec& run);

// OK where a checkpoint of `checkpoint` can go on as `run`; else every difference by name, and
// `mend`.
Status CheckSameModel(const ModelSpec& checkpoint, const ModelSpec& run, const std::string& path,
                      const std::string& mend);

// The model to go on with: the checkpoint's, which may have been pruned, in the run's arithmetic.
ModelSpec ResumedModel(const ModelSpec& checkpoint, const ModelSpec& run);

// OK where the checkpoint's layouts are of the kinds that the phase's `sparsity` asks for, with as
// many stored cells; else the first weight that differs.
Status CheckLayouts(const CheckpointInfo& checkpoint, const RunSpec& run, int phase,
                    const std::string& path);

}  // namespace filigree
