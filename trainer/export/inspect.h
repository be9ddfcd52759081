// What `inspect` prints.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace filigree {

// A person's view of a checkpoint, a run (its newest checkpoint), a Hugging Face directory, a
// safetensors file or a token shard: aligned columns, one line for each tensor, totals last. Files
// are verified on the way. `path` that is none of these is InvalidInput.
StatusOr<std::string> InspectPath(const std::string& path);

}  // namespace filigree
