// What a device can do at best: the denominator of MFU.
#pragma once

#include "kernels/backend.h"

namespace filigree {

// FLOP/s of one rank: the best of a few large matrix products, measured now (some tens of
// milliseconds on a CPU). A config's log.peak_tflops replaces it where the vendor's figure is
// wanted.
double PeakFlops(Backend& backend);

}  // namespace filigree
