// The communicator of GPU ranks: bulk collectives by NCCL, host collectives by another
// communicator.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/base/device.h"
#include "kernels/base/status.h"

namespace filigree {

// Joins the ranks of `*communicator` (MPI or TCP, "inner") in one NCCL communicator on `device`, a
// GPU, which must outlive it; it takes the place of the inner one. Collective. A single rank has no
// peers: nothing changes.
//
// Bulk collectives of device memory run on a stream of their own, which first waits for `ready`;
// Work::Wait makes a stream wait for the collective and never blocks the host. Work that nobody
// waited for is waited for by its destructor, on the host. Views of host memory (a checkpoint's
// gathering) go through `inner`, once `ready` is complete.
//
// Reductions: F32, F64, I64, and BF16 summed. NCCL adds BF16 in whatever precision its algorithm
// has (F32 inside a switch or a reduction of several inputs, a rounding at each hop of a ring);
// fp32 gradients are the choice where that matters. Sums depend on the number of ranks, the size
// and the algorithm that NCCL chooses, and are the same in every run of one topology.
//
// Meeting and parting never block for longer than the deadline. A collective is submitted in place;
// one that fails is fatal, one that a lost peer keeps from starting is the watchdog's to end. The
// fatal path aborts NCCL (in a bounded time) and then `inner`. AsyncError() tells a watchdog what
// failed meanwhile. Destruction finalises in order, for which all ranks must come.
//
// NCCL's environment is the user's: nothing is set or changed here, and what is found (NCCL_ALGO,
// NCCL_NVLS_ENABLE, NCCL_SOCKET_IFNAME, ...) is logged with the version.
//
// Errors: a build without NCCL and several ranks (invalid input); peers that do not come within
// `deadline_seconds`, two ranks on one GPU, no network (the machine's, with NCCL's own words). All
// ranks return an error where one does, and `*communicator` is then as it was.
Status ConnectOverNccl(std::unique_ptr<Communicator>* communicator, Device& device,
                       double deadline_seconds = 300);

}  // namespace filigree
