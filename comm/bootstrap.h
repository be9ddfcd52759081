// How a process finds its peers.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/base/status.h"

namespace filigree {

// The communicator of a process without peers: every collective is the identity, so nothing is
// copied and `in` and `out` must be the same memory.
std::unique_ptr<Communicator> MakeSingleProcessCommunicator();

// Starts MPI where a launcher started this process (Open MPI's mpirun, MPICH's mpiexec, Slurm's
// srun with PMI or PMIx). Else, where RANK and WORLD_SIZE are set, as torchrun does, the ranks meet
// over TCP at MASTER_ADDR:MASTER_PORT (the next port where torchrun's agent has that one itself);
// LOCAL_RANK and LOCAL_WORLD_SIZE are taken where they are set. Else returns the single-process
// communicator. The last two never touch MPI. Where somebody else has initialised MPI, joins it and
// leaves finalising to them.
//
// Invalid input, with the mend: a launcher of one MPI with a binary of another, srun without PMI,
// where N processes would each believe to be alone, and variables that are missing or no numbers.
//
// Also tells check.h the rank and host; the communicator installs the fatal hook, and finalises MPI
// when destroyed.
StatusOr<std::unique_ptr<Communicator>> Bootstrap();

// The rank that a launcher gave this process, known before MPI starts; 0 without a launcher.
int LaunchedRank();

}  // namespace filigree
