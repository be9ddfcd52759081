// What a device can do at best: the denominator of MFU.
#pragma once

#include <optional>

#include "kernels/backend.h"

namespace filigree {

// FLOP/s of some ranks together.
class PeakFlops {
 public:
  // Of one rank: `given` where it is not 0 (log.peak_tflops), else the vendor's figure where the
  // device is known, else the best of several large matrix products, measured now (a tenth of a
  // second).
  static PeakFlops Of(Backend& backend, double given, int ranks);
  // One that somebody says, or that was measured.
  PeakFlops(double flops, bool measured) : flops_(flops), measured_(measured) {}

  // A step ran so many FLOP/s. What was measured beside other work on the machine may be too
  // little: then the step is the better measurement.
  void Reached(double executed);
  // `flops` as a fraction of the peak. Nothing where a step has run more than a figure that was not
  // measured: it is not this device's peak.
  std::optional<double> Share(double flops) const;
  double flops() const { return flops_; }

 private:
  double flops_;
  bool measured_, exceeded_ = false;
};

}  // namespace filigree
