#include "trainer/topology/timeline.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/check.h"

namespace filigree {
namespace {

int64_t NearestMultiple(double value, int64_t interval) {
  return interval * std::llround(value / static_cast<double>(interval));
}

// Steps of a moment on the STEPS or TOKENS clock.
int64_t StepsOf(double moment, Clock clock, const Timeline& timeline) {
  if (clock == Clock::kFraction) return std::llround(moment * static_cast<double>(timeline.steps));
  if (clock == Clock::kSteps) return std::llround(moment);
  return std::llround(moment / static_cast<double>(timeline.tokens_per_step));
}

// Begin and end in fractions of the phase's steps, from fractions of its compute.
struct Span {
  double begin = 0, end = 0;
};
Span FromCompute(const SparsitySpec& spec) {
  const double k0 = 1 - spec.initial_sparsity, k1 = 1 - spec.sparsity;
  const double g = MeanCurveDensity(spec, spec.initial_sparsity, spec.sparsity);
  const double b = spec.begin, e = spec.end;
  const double cost = 1 / (b / k0 + (e - b) / g + (1 - e) / k1);
  return {b * cost / k0, b * cost / k0 + (e - b) * cost / g};
}

int64_t PointStep(const SparsitySpec& spec, size_t point, const Timeline& timeline) {
  return StepsOf(spec.points[point].at, spec.clock, timeline);
}

}  // namespace

std::optional<int64_t> EventGrid::IndexAt(int64_t step) const {
  if (step < first || step > last() || (step - first) % interval != 0) return std::nullopt;
  return (step - first) / interval;
}

int64_t EventGrid::LatestAt(int64_t step) const {
  if (step < first) return -1;
  return std::min((step - first) / interval, count - 1);
}

EventGrid EventsOf(const SparsitySpec& spec, const Timeline& timeline) {
  EventGrid grid;
  grid.interval = spec.update_interval;
  int64_t end = 0;
  if (spec.clock == Clock::kFraction || spec.clock == Clock::kCompute) {
    const Span span =
        spec.clock == Clock::kCompute ? FromCompute(spec) : Span{spec.begin, spec.end};
    const auto steps = static_cast<double>(timeline.steps);
    grid.first = NearestMultiple(span.begin * steps, grid.interval);
    end = NearestMultiple(span.end * steps, grid.interval);
    // No event beyond the phase: what it would bring would never be trained.
    const int64_t last = timeline.steps / grid.interval * grid.interval;
    grid.first = std::min(grid.first, last);
    end = std::min(end, last);
  } else {
    grid.first = StepsOf(spec.begin, spec.clock, timeline);
    end = StepsOf(spec.end, spec.clock, timeline);
  }
  grid.count = std::max<int64_t>((end - grid.first) / grid.interval, 0) + 1;
  return grid;
}

double SparsityAtEvent(const SparsitySpec& spec, int64_t index, int64_t count) {
  CHECK(index >= 0 && index < count) << "event " << index << " of " << count;
  const double s0 = spec.initial_sparsity, s1 = spec.sparsity;
  if (index + 1 == count) return s1;
  const double progress = static_cast<double>(index + 1) / static_cast<double>(count);
  switch (spec.curve) {
    case SparsityCurve::kCubic: {
      const double p = static_cast<double>(index) / static_cast<double>(count - 1);
      return s1 + (s0 - s1) * std::pow(1 - p, 3);
    }
    case SparsityCurve::kGeometric:
      return 1 - (1 - s0) * std::pow((1 - s1) / (1 - s0), progress);
    case SparsityCurve::kLinear:
      return s0 + (s1 - s0) * progress;
    case SparsityCurve::kConstant:
    case SparsityCurve::kPoints:
      break;
  }
  return s1;
}

double CurveSparsity(const SparsitySpec& spec, const Timeline& timeline, int64_t step) {
  if (spec.curve == SparsityCurve::kPoints) {
    double sparsity = spec.initial_sparsity;
    for (size_t i = 0; i < spec.points.size(); ++i) {
      if (PointStep(spec, i, timeline) <= step) sparsity = spec.points[i].sparsity;
    }
    return sparsity;
  }
  const EventGrid grid = EventsOf(spec, timeline);
  const int64_t latest = grid.LatestAt(step);
  return latest < 0 ? spec.initial_sparsity : SparsityAtEvent(spec, latest, grid.count);
}

bool IsCurveEvent(const SparsitySpec& spec, const Timeline& timeline, int64_t step) {
  if (spec.curve != SparsityCurve::kPoints) {
    return EventsOf(spec, timeline).IndexAt(step).has_value();
  }
  for (size_t i = 0; i < spec.points.size(); ++i) {
    if (PointStep(spec, i, timeline) == step) return true;
  }
  return false;
}

double MeanCurveDensity(const SparsitySpec& spec, double from, double to) {
  const double k0 = 1 - from, k1 = 1 - to;
  switch (spec.curve) {
    case SparsityCurve::kCubic:
      return k1 + (k0 - k1) / 4;
    case SparsityCurve::kGeometric:
      return k0 == k1 ? k1 : (k0 - k1) / std::log(k0 / k1);
    case SparsityCurve::kLinear:
      return (k0 + k1) / 2;
    case SparsityCurve::kConstant:
    case SparsityCurve::kPoints:
      break;
  }
  return k1;
}

double DropFractionAt(const SparsitySpec& spec, const Timeline& timeline, int64_t step) {
  if (spec.drop_curve == DropCurve::kConstant) return spec.drop_fraction;
  const double end = spec.drop_end * static_cast<double>(timeline.steps);
  const double progress = std::min(1.0, static_cast<double>(step) / end);
  const double remaining = 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return spec.final_drop_fraction + (spec.drop_fraction - spec.final_drop_fraction) * remaining;
}

bool IsDropEvent(const SparsitySpec& spec, const Timeline& timeline, int64_t step) {
  const double end = spec.drop_end * static_cast<double>(timeline.steps);
  return step > 0 && step % spec.update_interval == 0 && static_cast<double>(step) < end;
}

}  // namespace filigree
