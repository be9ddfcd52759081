// A stretch of a stream's work as one CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "kernels/base/device.h"
#include "kernels/cuda/cuda_device.h"

namespace filigree {

// Captures what `submit` submits to `stream` (Device::Record); `device` must outlive the result.
// Where something in it cannot be captured, ours or a library's, or the graph finds no memory: one
// warning, and nullptr; `submit` has come to its end, and nothing of it has begun. An allocation is
// fatal: what it hands out would outlive the recording.
std::unique_ptr<Recording> RecordGraph(const std::function<void()>& submit, CudaDevice& device,
                                       cudaStream_t stream);

}  // namespace filigree
