// A config read and checked against everything that does not need its data: the schema, the model,
// and the registries of parameterisations and rules, weight by weight.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/config/run_config.h"

namespace filigree {

StatusOr<LoadedConfig> LoadCheckedConfig(const std::string& path,
                                         const std::vector<std::string>& overrides);

}  // namespace filigree
