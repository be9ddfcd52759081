#include "comm/stall_timer.h"

namespace filigree {

void StallTimer::Begin(Cause cause, Stream& stream) {
  if (used_ == stalls_.size()) {
    stalls_.push_back({cause, device_.NewTimedEvent(), device_.NewTimedEvent()});
  }
  stalls_[used_].cause = cause;
  stalls_[used_].begin->Record(stream);
}

void StallTimer::End(Stream& stream) { stalls_[used_++].end->Record(stream); }

StallTimer::Stalls StallTimer::Take() {
  Stalls sum;
  for (size_t i = 0; i < used_; ++i) {
    const double ms = stalls_[i].end->MillisecondsSince(*stalls_[i].begin);
    (stalls_[i].cause == Cause::kGrads ? sum.grads_ms : sum.values_ms) += ms;
  }
  used_ = 0;
  return sum;
}

}  // namespace filigree
