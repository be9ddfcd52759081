// How long a stream stands still for the exchange: for a benchmark that asks what backward and
// forward hide of it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/base/device.h"

namespace filigree {

class StallTimer {
 public:
  enum class Cause { kGrads, kValues };
  struct Stalls {
    double grads_ms = 0;   // after backward, for gradients that still travelled
    double values_ms = 0;  // in the forward pass, for values that had not come
  };

  // `device` must outlive the timer.
  explicit StallTimer(Device& device) : device_(device) {}

  // Around whatever makes `stream` wait.
  void Begin(Cause cause, Stream& stream);
  void End(Stream& stream);
  // The sums since the last call. The streams must have finished.
  Stalls Take();

 private:
  struct Stall {
    Cause cause = Cause::kGrads;
    std::unique_ptr<Event> begin, end;
  };

  Device& device_;
  std::vector<Stall> stalls_;  // the first used_ are of now, the others wait to be used again
  size_t used_ = 0;
};

}  // namespace filigree
