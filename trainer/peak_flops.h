// What a device can do at best: the denominator of MFU.
#pragma once

#include "kernels/backend.h"

namespace filigree {

// FLOP/s of one rank: the vendor's figure where the device is known, else the best of a few large
// matrix products, measured now (some tens of milliseconds). A config's log.peak_tflops replaces
// it.
double PeakFlops(Backend& backend);

}  // namespace filigree
