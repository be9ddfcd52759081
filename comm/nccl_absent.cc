// nccl_communicator.h in a build that found no NCCL.
#include <string>
#include <utility>

#include "comm/nccl_communicator.h"

namespace filigree {

StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(std::unique_ptr<Communicator> inner,
                                                             Device& device,
                                                             double deadline_seconds) {
  if (inner->size() == 1) return inner;
  return InvalidInput("this build has no NCCL, so it trains on one GPU, and this run has " +
                      std::to_string(inner->size()) +
                      " ranks; install NCCL (NCCL_ROOT, the CUDA toolkit or the wheel "
                      "nvidia-nccl-cu13 are searched), configure and build again");
}

}  // namespace filigree
