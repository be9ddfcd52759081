// How a process finds its peers.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/base/status.h"

namespace filigree {

// The communicator of a process without peers.
std::unique_ptr<Communicator> MakeSingleProcessCommunicator();

// Starts MPI where a launcher started this process (Open MPI, MPICH/Hydra, Slurm with PMIx), else
// returns the single-process communicator without touching MPI. Names a launcher of one MPI with a
// binary of another (N processes that each believe to be alone). Also installs the fatal hook and
// rank of check.h. The communicator finalises MPI when destroyed.
StatusOr<std::unique_ptr<Communicator>> Bootstrap();

}  // namespace filigree
