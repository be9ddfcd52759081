// The communicator over MPI (3.1, C API), for tensors in host memory.
#pragma once

#include <cstdint>
#include <memory>

#include "comm/communicator.h"

namespace filigree {

// True once somebody (a test's main) has initialised MPI.
bool MpiIsInitialized();

// Joins MPI_COMM_WORLD, initialising MPI (MPI_THREAD_FUNNELED) where nobody did; then destruction
// finalises it too, which waits for the other ranks. Calls come from one thread. Every Work is gone
// before its communicator. From construction to destruction the fatal path of check.h ends all
// ranks with MPI_Abort.
//
// Collectives are MPI's non-blocking ones. MPI 3.1 counts in ints, so a tensor (or a rank's slice)
// of more than `max_elements_per_call` elements takes several calls. MPI advances them inside its
// calls only: they overlap with compute as far as starting and waiting for other collectives lets
// them. A reduce-scatter holds a temporary of one slice until Work::Wait.
//
// BF16 is only summed: each pair of partial sums is added in F32 and rounded.
//
// AllReduce leaves the same bits on all ranks: the algorithms of Open MPI and MPICH either compute
// an element on one rank and copy it, or add the same two partial sums on both sides, and addition
// commutes to the bit (NaN apart). The order of the summands depends on the number of ranks and on
// the size.
std::unique_ptr<Communicator> MakeMpiCommunicator(int64_t max_elements_per_call = int64_t{1} << 30);

}  // namespace filigree
