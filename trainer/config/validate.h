// What a complete configuration must satisfy. Files are not opened here.
#pragma once

#include <vector>

#include "trainer/config/complete.h"
#include "trainer/config/run_config.h"

namespace filigree::config {

// Reports every problem of `config`, whose phases are `phases`, at the field's place.
void Validate(const RunConfig& config, const std::vector<MergedPhase>& phases,
              const Origins& origins, const KnownNames& known, Problems* problems);

}  // namespace filigree::config
