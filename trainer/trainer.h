// The training run: phases, steps, evaluation, checkpoints, metrics.
//
// All ranks execute the same sequence of collectives; rank 0 alone writes files and prints. What
// happens at a step (learning rate, data, evaluation, checkpoint, phase) is a pure function of the
// configuration and the step's number, so a resumed run is the run that was not cut.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

struct TrainOptions {
  RunSpec run;
  std::string config_text;  // effective configuration, stored with the run and its checkpoints
  std::string run_dir;
  std::string resume = "auto";  // see resume.h
};

// Trains to the end of the last phase. InvalidInput before anything was written: bad data, a
// checkpoint that does not fit, an unwritable directory. Interrupted: SIGTERM or SIGUSR1 arrived
// and the state was saved. Collective; every rank returns the same status.
Status Train(const TrainOptions& options, Communicator& communicator, Backend& backend);

}  // namespace filigree
