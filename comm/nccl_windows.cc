#include "comm/nccl_windows.h"

#include <cstdint>
#include <cstdlib>

#include "comm/gradient_exchange.h"
#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"

namespace filigree {
namespace {

int64_t HeldBytes(size_t bytes) { return AlignUp(static_cast<int64_t>(bytes), kPeerMemoryPiece); }

}  // namespace

NcclWindows::~NcclWindows() {
  CHECK(windows_.empty()) << "a communicator must outlive the memory that it allocated";
}

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)

void PreferCopyEngines(ncclConfig_t* config) {
  // Of its own NCCL takes half as many: 155 MB reduce-scattered between two H100s 400 us, and so 253.
  constexpr int kCtasAlone = 32;
  config->CTAPolicy = NCCL_CTA_POLICY_ZERO;
  config->minCTAs = config->maxCTAs = kCtasAlone;
}

bool CopyEnginesMayServe() {
  constexpr int kBatchedCopies = 12050;  // the first driver for which NCCL copies
  const char* policy = std::getenv("NCCL_CTA_POLICY");
  if (policy && (std::atoi(policy) & NCCL_CTA_POLICY_ZERO) == 0) return false;
  int library = 0, driver = 0;
  ncclGetVersion(&library);
  CUDA_CHECK(cudaDriverGetVersion(&driver));
  return library >= NCCL_VERSION(2, 28, 0) && driver >= kBatchedCopies;
}

bool HasSymmetricMemory(ncclComm_t comm, int device_ordinal) {
  constexpr size_t kProbeBytes = kPeerMemoryPiece;
  CUDA_CHECK(cudaSetDevice(device_ordinal));
  void* memory = nullptr;
  CHECK(ncclMemAlloc(&memory, kProbeBytes) == ncclSuccess) << "of " << kProbeBytes << " bytes";
  ncclWindow_t window = nullptr;
  const ncclResult_t registered =
      ncclCommWindowRegister(comm, memory, kProbeBytes, &window, NCCL_WIN_COLL_SYMMETRIC);
  // Kernels read a window through its handle, so that of a symmetric one is device memory; where
  // NCCL has no symmetric memory it hands out a record of its own.
  cudaPointerAttributes attributes = {};
  const bool symmetric = registered == ncclSuccess && window != nullptr &&
                         cudaPointerGetAttributes(&attributes, window) == cudaSuccess &&
                         attributes.type == cudaMemoryTypeDevice;
  if (registered == ncclSuccess) ncclCommWindowDeregister(comm, window);
  ncclMemFree(memory);
  return symmetric;
}

DeviceBuffer NcclWindows::Allocate(ncclComm_t comm, size_t bytes, std::string_view kind) {
  if (bytes == 0) return DeviceBuffer();
  CUDA_CHECK(cudaSetDevice(device_.ordinal()));
  void* data = nullptr;
  if (ncclMemAlloc(&data, bytes) != ncclSuccess) {
    device_.Allocate(bytes, kind);  // says what was needed and what was free
    CHECK(false) << "ncclMemAlloc of " << bytes << " bytes for " << kind << " failed";
  }
  ncclWindow_t window = nullptr;
  const ncclResult_t result =
      ncclCommWindowRegister(comm, data, bytes, &window, NCCL_WIN_COLL_SYMMETRIC);
  CHECK(result == ncclSuccess && window != nullptr)
      << "ncclCommWindowRegister: " << ncclGetErrorString(result);
  windows_[data] = {comm, window};
  device_.Account(kind, HeldBytes(bytes));
  return DeviceBuffer(data, bytes, std::string(kind), this, &NcclWindows::Release);
}

void NcclWindows::Release(void* owner, void* data, size_t bytes, const std::string& kind) {
  auto* windows = static_cast<NcclWindows*>(owner);
  CUDA_CHECK(cudaDeviceSynchronize());  // nothing under way uses it afterwards
  const auto found = windows->windows_.find(data);
  CHECK(found != windows->windows_.end());
  const ncclResult_t left =
      ncclCommWindowDeregister(found->second.comm, static_cast<ncclWindow_t>(found->second.handle));
  CHECK(left == ncclSuccess) << "ncclCommWindowDeregister: " << ncclGetErrorString(left);
  const ncclResult_t freed = ncclMemFree(data);
  CHECK(freed == ncclSuccess) << "ncclMemFree: " << ncclGetErrorString(freed);
  windows->windows_.erase(found);
  windows->device_.Account(kind, -HeldBytes(bytes));
}

#else

void PreferCopyEngines(ncclConfig_t*) {}
bool CopyEnginesMayServe() { return false; }
bool HasSymmetricMemory(ncclComm_t, int) { return false; }
DeviceBuffer NcclWindows::Allocate(ncclComm_t, size_t bytes, std::string_view kind) {
  return device_.Allocate(bytes, kind);
}

#endif

}  // namespace filigree
