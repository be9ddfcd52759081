// The last step of loading: a complete, valid configuration as plain structs.
#pragma once

#include <vector>

#include "trainer/config/complete.h"
#include "trainer/spec.h"

namespace filigree::config {

RunSpec ToSpec(const RunConfig& config, const std::vector<MergedPhase>& phases);

}  // namespace filigree::config
