// What `eval`, `generate` and `inspect` take as a model.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

// A run (its newest checkpoint), a checkpoint, or a Hugging Face directory. InvalidInput where
// `path` is none of them.
StatusOr<std::unique_ptr<CheckpointReader>> OpenModel(const std::string& path);

// Whether OpenModel takes `path` for a Hugging Face directory.
bool IsHuggingFace(const std::string& path);

}  // namespace filigree
