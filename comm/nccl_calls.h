// What every call of NCCL needs: its types and errors in ours, and waits that end.
#pragma once

#include <nccl.h>

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "comm/communicator.h"
#include "kernels/base/dtype.h"

namespace filigree {

// F64, F32, BF16, I64; others, and BF16 that is not summed, are a CHECK.
ncclDataType_t NcclTypeOf(DType dtype);
ncclRedOp_t NcclOpOf(ReduceOp op, DType dtype);

// NCCL's own words, with the detail of its last error.
std::string NcclErrorText(ncclResult_t result, ncclComm_t comm);

// "NCCL 2.28.9; from the environment: NCCL_NVLS_ENABLE=0"
std::string DescribeNccl();

// Waits until the communicator has done what it was told last. Past the deadline: ncclInProgress.
ncclResult_t Settle(ncclComm_t comm, ncclResult_t result,
                    std::chrono::steady_clock::time_point deadline);

// How a communicator is made that does not block, so that a peer that is missing ends in a message.
ncclConfig_t MemberConfig();

// Makes all ranks of `ranks`, which carries the id, members of `*member`, a communicator by that
// config. Collective; each rank learns of its own failure alone.
ncclResult_t MeetOverNccl(Communicator& ranks, std::chrono::steady_clock::duration deadline,
                          ncclComm_t* member);

// ncclCommAbort and ncclCommDestroy wait for NCCL's own threads, and for peers that may be gone; a
// process that is about to end does not wait for ever.
template <typename Action>
bool EndsWithin(std::chrono::steady_clock::duration limit, Action action) {
  std::promise<void> done;
  std::future<void> ended = done.get_future();
  std::thread([action = std::move(action), done = std::move(done)]() mutable {
    action();
    done.set_value();
  }).detach();
  return ended.wait_for(limit) == std::future_status::ready;
}

}  // namespace filigree
