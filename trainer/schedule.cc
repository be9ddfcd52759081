#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/check.h"

namespace filigree {

double LearningRate(const ScheduleSpec& schedule, int64_t step_in_phase, int64_t phase_steps) {
  CHECK(step_in_phase >= 0 && step_in_phase < phase_steps)
      << "step " << step_in_phase << " of a phase of " << phase_steps;
  // Steps are counted from 1 here: step `last` ends the phase.
  const double step = static_cast<double>(step_in_phase + 1);
  const double last = static_cast<double>(phase_steps);
  const double warmup = static_cast<double>(schedule.warmup_steps);
  if (step <= warmup) return schedule.lr * step / warmup;

  const double decay_steps = std::round(schedule.wsd_decay_fraction * last);
  const bool wsd = schedule.shape == ScheduleShape::kWsd;
  const double decay_begin = wsd ? std::max(warmup, last - decay_steps) : warmup;
  if (step <= decay_begin) return schedule.lr;
  const double progress = (step - decay_begin) / (last - decay_begin);

  // What is left of the way from the peak down to the final rate.
  double remaining = 1;
  switch (schedule.shape) {
    case ScheduleShape::kCosine:
      remaining = 0.5 * (1 + std::cos(std::numbers::pi * progress));
      break;
    case ScheduleShape::kLinear:
    case ScheduleShape::kWsd:
      remaining = 1 - progress;
      break;
    case ScheduleShape::kConstant:
      break;
  }
  const double floor = schedule.final_lr_fraction;
  return schedule.lr * (floor + (1 - floor) * remaining);
}

}  // namespace filigree
