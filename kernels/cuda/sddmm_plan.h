// How the weight gradient's units are divided among its workers (block_schedule.h).
#pragma once

#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// A range of one unit's tokens, in steps of 64.
struct SddmmSlice {
  int unit, begin, steps;
};

// What every worker does, in order.
struct SddmmPlan {
  std::vector<std::vector<SddmmSlice>> lists;
  int steps = 0;         // of the worker with most
  int slots = 0;         // partial sums
  bool reduces = false;  // which a second kernel adds
  bool whole = false;    // every worker with work has whole units, so that all sweep all tokens
  bool rests = false;    // some workers sweep tokens anew, for what equal ranges left
  // An estimate from what was measured on an H100 (sddmm_plan.cc), to compare plans by.
  double microseconds = 0;
};

// The plan that promises to take the least time. `a_chunks`: of a unit's A slice, 64s.
SddmmPlan ChooseSddmmPlan(const std::vector<SddmmUnit>& units, int a_chunks, int total_steps,
                          int workers);

}  // namespace filigree
