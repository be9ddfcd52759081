// A stretch of a stream's work as one CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "kernels/base/device.h"

namespace filigree {

// Captures what `submit` submits to `stream` (Device::Record). A call that cannot be captured, an
// allocation or a wait, is fatal and says so.
std::unique_ptr<Recording> RecordGraph(const std::function<void()>& submit, cudaStream_t stream);

}  // namespace filigree
