// Learning-rate schedules: pure functions of the configuration and the step.
#pragma once

#include <cstdint>

#include "trainer/spec.h"

namespace filigree {

// The rate of step `step_in_phase` (from 0) of a phase of `phase_steps` steps.
//
// Warm-up: step i < warmup_steps = W has lr * (i + 1) / W, so the last of them runs at the peak.
// After it the rate falls from the peak to lr * final_lr_fraction, which the phase's last step has:
// along half a cosine (COSINE), along a line (LINEAR), not at all (CONSTANT), or along a line over
// the last round(wsd_decay_fraction * phase_steps) steps only (WSD, Hu et al. 2024).
double LearningRate(const ScheduleSpec& schedule, int64_t step_in_phase, int64_t phase_steps);

}  // namespace filigree
