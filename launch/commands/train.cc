#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "trainer/stop_signal.h"
#include "trainer/trainer.h"

namespace filigree {
namespace {

Status TrainAsRank(const TrainCommand& command, Session& session, const LoadedConfig& config) {
  TrainOptions options;
  options.run = config.spec;
  options.config_text = config.effective_text;
  options.run_dir = command.out;
  options.resume = command.resume;
  return Train(options, *session.communicator, *session.backend);
}

}  // namespace

Status TrainCommand::Run() const {
  WatchStopSignals();  // before anything that takes time: a signal while a run starts counts too
  auto loaded = LoadCheckedConfig(config, overrides);
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(loaded.ok() ? SessionOptionsOf(loaded->spec) : kNoCompute));
  if (!loaded.ok()) return ForThisRank(loaded.status(), session);
  return ForThisRank(TrainAsRank(*this, session, *loaded), session);
}

}  // namespace filigree
