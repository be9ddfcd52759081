// A stretch of a stream's work as one CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "kernels/base/device.h"
#include "kernels/cuda/cuda_device.h"

namespace filigree {

// Captures what `submit` submits to `stream` (Device::Record); `device` must outlive the result. A
// call of ours that cannot be captured, an allocation or a wait, is fatal and says so. Where a
// library's cannot, or the graph finds no memory: one warning, and nullptr.
std::unique_ptr<Recording> RecordGraph(const std::function<void()>& submit, CudaDevice& device,
                                       cudaStream_t stream);

}  // namespace filigree
