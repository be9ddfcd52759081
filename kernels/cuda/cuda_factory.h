// The CUDA backend for code that sees no CUDA headers (launch/): how many GPUs there are, and one
// of them with its backend.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {

// GPUs visible to this process; 0 where there is no driver.
int CudaDeviceCount();

// Memory of this process's GPU that is in use, by whomever: contexts, libraries and other programs
// too.
int64_t CudaBytesInUse();

// A number that tells this GPU (or MIG instance) from every other one of any host.
uint64_t CudaDeviceIdentity(int ordinal);

// What kind of GPU a device of MakeCudaDevice is.
const GpuCard& CudaCard(const Device& device);

// GPU `ordinal` of those visible to this process.
std::unique_ptr<Device> MakeCudaDevice(int ordinal);
// `device` comes from MakeCudaDevice and must outlive the backend.
std::unique_ptr<Backend> MakeCudaBackend(Device& device);

}  // namespace filigree
