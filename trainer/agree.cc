#include "trainer/agree.h"

#include <cstdint>
#include <string>

namespace filigree {

Status AgreeOnStatus(const Status& status, Communicator& communicator) {
  int64_t failing = status.ok() ? communicator.size() : communicator.rank();
  communicator.AllReduceHost(std::span<int64_t>(&failing, 1), ReduceOp::kMin);
  if (failing == communicator.size()) return OkStatus();
  int64_t code = failing == communicator.rank() ? static_cast<int64_t>(status.code()) : 0;
  communicator.AllReduceHost(std::span<int64_t>(&code, 1), ReduceOp::kMax);
  std::string message = status.message();
  communicator.BroadcastHost(&message, static_cast<int>(failing));
  return Status(static_cast<StatusCode>(code), message);
}

}  // namespace filigree
