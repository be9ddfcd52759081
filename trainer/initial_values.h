// What a parameter starts from, brought to where training keeps it.
#pragma once

#include <cstdint>

#include "comm/flat_buffer.h"
#include "kernels/backend.h"
#include "trainer/parameter.h"

namespace filigree {

// Writes the initial values of `parameter`, which is segment `segment`, to its master and values:
// functions of `seed` and the logical cell alone, of the same bits on every backend and for any
// number of ranks and threads. Drawn ones are made in the device's memory, a piece at a time,
// through at most kInitialPiece * 6 bytes of scratch: the start's, which no plan of a step has. Of an
// F32 state.
inline constexpr int64_t kInitialPiece = int64_t{1} << 20;
void WriteInitialValues(const Parameter& parameter, uint64_t seed, FlatBuffer& buffer, int segment,
                        Backend& backend, Stream& stream);

}  // namespace filigree
