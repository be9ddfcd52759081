// What a run opens before it writes anything: the checkpoint or model it starts from, its
// data, its tokenizer, its teachers.
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
  std::unique_ptr<CheckpointReader> start;  // nullptr: the run begins
  // init_from's model, where its values are wanted still: at the beginning, and where a later phase
  // goes back to it.
  std::unique_ptr<CheckpointReader> initial;
  std::unique_ptr<Tokenizer> tokenizer;  // nullptr where the data has none
  std::string tokenizer_dir;
};

// What this kind of device cannot train: gradients or updates that a deterministic sum does not
// know.
Status CheckDevice(const RunSpec& run, const Device& device);

// Everything that can be wrong outside is found here, before the run directory is touched. The
// status is this rank's own.
StatusOr<RunInputs> OpenRunInputs(const TrainOptions& options, const Communicator& communicator,
                                  const Device& device);

}  // namespace filigree
