// nccl_communicator.h in a build that found no NCCL.
#include <string>

#include "comm/nccl_communicator.h"

namespace filigree {

Status ConnectOverNccl(std::unique_ptr<Communicator>* communicator, Device&, double) {
  const int ranks = (*communicator)->size();
  if (ranks == 1) return OkStatus();
  return InvalidInput("this build has no NCCL, so it trains on one GPU, and this run has " +
                      std::to_string(ranks) +
                      " ranks; install NCCL (NCCL_ROOT, the CUDA toolkit or the wheel "
                      "nvidia-nccl-cu13 are searched), configure and build again");
}

}  // namespace filigree
