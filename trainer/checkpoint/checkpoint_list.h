// Complete checkpoints of a run by step; trainer/checkpoint/checkpoint.h declares the rest.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace filigree {

// step -> path of the complete checkpoints in `root` (RUN/checkpoints), ascending.
std::map<int64_t, std::string> ListCheckpoints(const std::string& root);

}  // namespace filigree
