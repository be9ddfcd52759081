// The memory of sparsified weights as `plan` and `bench step` print it: a line, or a field, each.
#pragma once

#include <nlohmann/json.hpp>

#include "trainer/sparsified_memory.h"

namespace filigree {

nlohmann::json ToJson(const SparsifiedMemory& memory);
// Nothing where no weight is sparsified.
void PrintSparsified(const SparsifiedMemory& memory);

}  // namespace filigree
