// What a run opens before it writes anything: the checkpoint it starts from, its data, its
// tokenizer.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "data/tokenizer.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/trainer.h"

namespace filigree {

struct RunInputs {
  std::unique_ptr<CheckpointReader> start;  // nullptr: fresh weights
  std::unique_ptr<Tokenizer> tokenizer;     // nullptr where the data has none
  std::string tokenizer_dir;
};

// Everything that can be wrong outside is found here, before the run directory is touched. The
// status is this rank's own.
StatusOr<RunInputs> OpenRunInputs(const TrainOptions& options, const Communicator& communicator,
                                  const Device& device);

}  // namespace filigree
