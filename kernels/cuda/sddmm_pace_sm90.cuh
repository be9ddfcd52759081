// What keeps the weight gradient's workers together in their sweep over the tokens.
#pragma once

#include <cstdint>

namespace filigree::sm90 {

// A sweep is a number of windows.
struct SddmmPace {
  // counters[w]: workers past window w; counters[windows]: workers that are done, of which the last
  // leaves zeros. nullptr: nobody waits.
  uint32_t* counters;
  int windows, window_steps;
};

// Before a worker's copies of a window start, all have started those of the window before: what
// they share is then in the L2 for all of them. A worker that has waited in vain, since some do not
// run yet, waits no more.
class Pacer {
 public:
  __device__ explicit Pacer(const SddmmPace& pace)
      : pace_(pace), waits_(pace.counters != nullptr) {}

  __device__ __forceinline__ void BeforeStep() {
    if (pace_.counters == nullptr) return;
    if (steps_ % pace_.window_steps == 0 && steps_ > 0) {
      uint32_t* past = pace_.counters + steps_ / pace_.window_steps - 1;
      atomicAdd(past, 1u);
      if (waits_) waits_ = Wait(past);
    }
    ++steps_;
  }
  __device__ void Finish() {
    if (pace_.counters == nullptr) return;
    for (int w = steps_ == 0 ? 0 : (steps_ - 1) / pace_.window_steps; w < pace_.windows; ++w) {
      atomicAdd(pace_.counters + w, 1u);
    }
    __threadfence();  // counted, and read for the last time, before this worker is done
    if (atomicAdd(pace_.counters + pace_.windows, 1u) != gridDim.x - 1) return;
    for (int w = 0; w <= pace_.windows; ++w) pace_.counters[w] = 0;
  }

 private:
  __device__ static bool Wait(const uint32_t* counter) {
    constexpr int kPatience = 40;  // reads of the L2: about 30 us
    for (int i = 0; i < kPatience; ++i) {
      if (*reinterpret_cast<const volatile uint32_t*>(counter) >= gridDim.x) return true;
    }
    return false;
  }

  const SddmmPace& pace_;
  int steps_ = 0;
  bool waits_;
};

}  // namespace filigree::sm90
