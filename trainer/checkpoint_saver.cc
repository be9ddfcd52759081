#include "trainer/checkpoint_saver.h"

#include <algorithm>
#include <vector>

#include "kernels/base/log.h"
#include "kernels/base/progress.h"
#include "trainer/agree.h"
#include "trainer/topology_updater.h"

namespace filigree {

bool CheckpointSaver::IsRewindTarget(int64_t step) const {
  const auto& phases = options_.run.phases;
  return std::any_of(phases.begin(), phases.end(), [&](const PhaseSpec& phase) {
    return phase.rewind_step == step && phase.first_step > step;
  });
}

Status CheckpointSaver::RemoveOld() const {
  std::vector<int64_t> kept;
  for (const PhaseSpec& phase : options_.run.phases) {
    kept.push_back(phase.first_step + phase.steps);
    kept.push_back(phase.rewind_step);
  }
  return RemoveOldCheckpoints(options_.run_dir, options_.run.checkpoint_keep_last, kept);
}

Status CheckpointSaver::Save(TrainingState& state, int64_t step, int64_t tokens,
                             const std::optional<PruningProgress>& pruning,
                             const std::string& tokenizer_dir, Stream& stream) {
  if (saved_step_ == step) return OkStatus();
  ReportActivity("saving a checkpoint");
  CheckpointInfo info;
  info.step = step;
  info.tokens = tokens;
  info.phase = state.phase();
  info.world_size = communicator_.size();
  info.seed = options_.run.seed;
  info.model = state.model().spec();
  info.config_text = options_.config_text;
  info.pruning = pruning;
  CheckLayoutsAgree(state.parameters(), communicator_);
  const std::string directory = CheckpointDirectory(options_.run_dir, step);
  RETURN_IF_ERROR(state.Save(directory, info, tokenizer_dir, stream));
  RETURN_IF_ERROR(
      AgreeOnStatus(communicator_.rank() == 0 ? RemoveOld() : OkStatus(), communicator_));
  saved_step_ = written_step_ = step;
  LogInfo("saved " + directory);
  return OkStatus();
}

}  // namespace filigree
