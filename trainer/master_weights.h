// A parameter's whole weights on the host, for rules that read all of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/training_state.h"

namespace filigree {

// The parameter of that name; it must exist.
int IndexOf(const std::vector<Parameter>& parameters, const std::string& name);

// The stored master weights, gathered on every rank. Adds the bytes that this exchanges to *bytes:
// with one shard there is no traffic. Collective; waits for `stream`.
std::vector<float> GatherMaster(const TrainingState& state, int parameter,
                                Communicator& communicator, Stream& stream, int64_t* bytes);

}  // namespace filigree
