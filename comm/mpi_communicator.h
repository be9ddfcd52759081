// The communicator over MPI (3.1), for tensors in host memory.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace filigree {

// True once somebody (a test's main) has initialised MPI.
bool MpiIsInitialized();

// Joins MPI_COMM_WORLD, initialising MPI where nobody did; then destruction finalises it too. Calls
// come from one thread. Collectives are MPI's non-blocking ones, at most 2^30 elements each (larger
// tensors are split); BF16 is summed in F32. MPI gives all ranks the same bits where its algorithms
// do; those of Open MPI and MPICH for all-reduce do.
std::unique_ptr<Communicator> MakeMpiCommunicator();

}  // namespace filigree
