// AdamW on state that is held in fewer bytes.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/backend.h"

namespace filigree {

// `args` without a master, or with moments as codes; values are BF16.
void LaunchAdamWCompact(const AdamWArgs& args, cudaStream_t stream);

}  // namespace filigree
