// What the host reads of a device's results.
#pragma once

#include <vector>

#include "kernels/base/device.h"

namespace filigree {

// The elements of `view` (F32 or BF16, host or device memory, rows of any stride) in order. Waits
// for the stream.
std::vector<float> ReadFloats(Device& device, ConstTensorView view, Stream& stream);

}  // namespace filigree
