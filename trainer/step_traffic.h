// What one optimizer step exchanges: `plan` prints it and a run's count must equal it.
#pragma once

#include <cstdint>

#include "comm/gradient_exchange.h"
#include "kernels/base/device.h"
#include "trainer/spec.h"

namespace filigree {

// Reductions of scalars in a step: the tokens that count with the stop flag, the loss (with a
// teacher's divergence beside it), under ZeRO-1 the norm.
int ScalarReductionsPerStep(const RunSpec& run);
// Their bytes, without a teacher.
int64_t ControlBytesPerStep(const RunSpec& run, int ranks);

// Of a step of phase `phase` over this layout on `ranks` such devices.
ExchangedBytes PredictStepBytes(const RunSpec& run, int phase, int ranks, const FlatLayout& layout,
                                const Device& device);

}  // namespace filigree
