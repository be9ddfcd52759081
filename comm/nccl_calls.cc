#include "comm/nccl_calls.h"

#include <unistd.h>

#include <cstring>
#include <string_view>

#include "kernels/base/check.h"

namespace filigree {

ncclDataType_t NcclTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return ncclFloat64;
    case DType::kF32:
      return ncclFloat32;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI64:
      return ncclInt64;
    default:
      CHECK(false) << "reduction of " << NameOf(dtype);
  }
}

ncclRedOp_t NcclOpOf(ReduceOp op, DType dtype) {
  CHECK(op == ReduceOp::kSum || dtype != DType::kBF16) << "BF16 is only summed";
  switch (op) {
    case ReduceOp::kSum:
      return ncclSum;
    case ReduceOp::kMin:
      return ncclMin;
    case ReduceOp::kMax:
      return ncclMax;
  }
  CHECK(false) << "reduction " << static_cast<int>(op);
}

std::string NcclErrorText(ncclResult_t result, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  std::string text = ncclGetErrorString(result);
  if (detail && *detail) text += std::string(" (") + detail + ")";
  return text;
}

std::string DescribeNccl() {
  int version = 0;
  ncclGetVersion(&version);
  std::string text = "NCCL " + std::to_string(version / 10000) + "." +
                     std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
  const char* separator = "; from the environment: ";
  for (char** variable = environ; *variable; ++variable) {
    if (!std::string_view(*variable).starts_with("NCCL_")) continue;
    text += separator + std::string(*variable);
    separator = ", ";
  }
  return text;
}

ncclResult_t Settle(ncclComm_t comm, ncclResult_t result,
                    std::chrono::steady_clock::time_point deadline) {
  while (result == ncclInProgress && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    result = asked == ncclSuccess ? state : asked;
  }
  return result;
}

ncclConfig_t MemberConfig() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.splitShare = 1;
  config.commName = "filigree";
  return config;
}

ncclResult_t MeetOverNccl(Communicator& ranks, std::chrono::steady_clock::duration deadline,
                          ncclComm_t* member) {
  ncclUniqueId id = {};
  ncclResult_t result = ncclSuccess;
  if (ranks.rank() == 0) result = ncclGetUniqueId(&id);
  // Rank 0's failure shows in what it sends: nothing.
  std::string bytes = result == ncclSuccess ? std::string(id.internal, sizeof(id.internal)) : "";
  ranks.BroadcastHost(&bytes, 0);
  if (bytes.empty()) return result == ncclSuccess ? ncclRemoteError : result;
  std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
  ncclConfig_t config = MemberConfig();
  const auto end = std::chrono::steady_clock::now() + deadline;
  result = ncclCommInitRankConfig(member, ranks.size(), id, ranks.rank(), &config);
  return Settle(*member, result, end);
}

}  // namespace filigree
