// Memory that the GPUs of one host reach in each other: NCCL's symmetric windows. Between buffers
// that lie in windows NCCL moves all-gathers and all-to-alls by copy engines (its "zero CTA"
// policy, 2.28), so that no kernel of its own takes multiprocessors from the products beside it: a
// product whose tiles fill all of them in one wave else waits for a second wave.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include "kernels/base/device.h"
#include "kernels/cuda/cuda_device.h"

namespace filigree {

// Asks for that policy in `config`, where NCCL knows it, and for kernels, which then run alone, that
// take as many multiprocessors as fill the links between the GPUs.
void PreferCopyEngines(ncclConfig_t* config);

// What this rank knows alone of whether copy engines carry its collectives: NCCL and the driver are
// recent enough, and the environment (NCCL_CTA_POLICY) leaves the policy as it was asked for.
bool CopyEnginesMayServe();

// Whether the ranks of `comm`, which blocks, reach each other's memory. Collective; may wait for
// peers.
bool HasSymmetricMemory(ncclComm_t comm, int device_ordinal);

// The windows of one communicator.
class NcclWindows {
 public:
  // `device` must outlive the object.
  explicit NcclWindows(Device& device) : device_(static_cast<CudaDevice&>(device)) {}
  NcclWindows(const NcclWindows&) = delete;
  NcclWindows& operator=(const NcclWindows&) = delete;
  // All buffers are gone.
  ~NcclWindows();

  // Memory in a window of its own, counted by the device. Collective over `comm`, which outlives
  // the buffer. Failures are fatal, as those of Device::Allocate are.
  DeviceBuffer Allocate(ncclComm_t comm, size_t bytes, std::string_view kind);

 private:
  struct Window {
    ncclComm_t comm = nullptr;
    void* handle = nullptr;  // ncclWindow_t, which older headers lack
  };
  static void Release(void* owner, void* data, size_t bytes, const std::string& kind);

  CudaDevice& device_;
  std::map<void*, Window> windows_;  // by memory
};

}  // namespace filigree
