#include "trainer/topology/rule_parts.h"

#include <sstream>

namespace filigree {
namespace {

template <typename... Parts>
Status Refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return InvalidInput(message.str());
}

// Steps (or a fraction) that `end` may reach.
Status CheckEnd(const SparsitySpec& spec, const Timeline& timeline, const char* what, double at) {
  switch (spec.clock) {
    case Clock::kFraction:
    case Clock::kCompute:
      if (at <= 1) return OkStatus();
      return Refuse(what, " = ", at,
                    " is a fraction of the phase on this clock; give at most 1, or ",
                    "set clock: STEPS or TOKENS");
    case Clock::kSteps:
      if (at <= static_cast<double>(timeline.steps)) return OkStatus();
      return Refuse(what, " = ", at, " is after the phase of ", timeline.steps, " steps");
    case Clock::kTokens: {
      const double tokens =
          static_cast<double>(timeline.steps) * static_cast<double>(timeline.tokens_per_step);
      if (at <= tokens) return OkStatus();
      return Refuse(what, " = ", at, " is after the phase of ", static_cast<int64_t>(tokens),
                    " tokens");
    }
  }
  return OkStatus();
}

Status CheckPoints(const SparsitySpec& spec, const Timeline& timeline) {
  if (spec.points.empty()) return Refuse("curve = POINTS needs a list of point { at sparsity }");
  if (spec.clock == Clock::kCompute) {
    return Refuse(
        "clock = COMPUTE needs a curve between two sparsities, not POINTS; give the "
        "points as FRACTION, STEPS or TOKENS");
  }
  for (size_t i = 0; i < spec.points.size(); ++i) {
    RETURN_IF_ERROR(CheckEnd(spec, timeline, "point.at", spec.points[i].at));
    if (i > 0 && spec.points[i].at <= spec.points[i - 1].at) {
      return Refuse("point ", i, " is not after point ", i - 1, "; order them by `at`");
    }
  }
  if (spec.points.back().sparsity == spec.sparsity) return OkStatus();
  return Refuse("the last point's sparsity ", spec.points.back().sparsity,
                " is not sparsity = ", spec.sparsity, "; make them equal");
}

}  // namespace

std::optional<TopologyAction> NoAction(const SparsitySpec&, const Timeline&, int64_t) {
  return std::nullopt;
}

double TargetAlways(const SparsitySpec& spec, const Timeline&, int64_t) { return spec.sparsity; }

Status AcceptStatic(const SparsitySpec&, const Timeline&) { return OkStatus(); }

std::optional<TopologyAction> PruneAtStart(const SparsitySpec& spec, const Timeline&,
                                           int64_t step) {
  if (step > 0) return std::nullopt;
  return TopologyAction{.sparsity = spec.sparsity};
}

std::optional<TopologyAction> FollowCurve(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step) {
  if (!IsCurveEvent(spec, timeline, step)) return std::nullopt;
  return TopologyAction{.sparsity = CurveSparsity(spec, timeline, step)};
}

Status CheckTimes(const SparsitySpec& spec, const Timeline& timeline) {
  if (spec.curve == SparsityCurve::kPoints) return CheckPoints(spec, timeline);
  if (spec.end < spec.begin) {
    return Refuse("end = ", spec.end, " is before begin = ", spec.begin,
                  "; the curve needs begin <= end");
  }
  RETURN_IF_ERROR(CheckEnd(spec, timeline, "end", spec.end));
  if (spec.update_interval <= timeline.steps) return OkStatus();
  return Refuse("update_interval = ", spec.update_interval, " is longer than the phase of ",
                timeline.steps,
                " steps, and the curve would have no event; lower it or lengthen the phase");
}

Status CheckRising(const SparsitySpec& spec, const Timeline&) {
  double before = spec.initial_sparsity;
  std::vector<SparsityPoint> points = spec.points;
  if (spec.curve != SparsityCurve::kPoints) points = {{.sparsity = spec.sparsity}};
  for (const SparsityPoint& point : points) {
    if (point.sparsity < before) {
      return Refuse("the sparsity falls from ", before, " to ", point.sparsity, ", and rule ",
                    spec.rule, " only prunes; take rule sparse_to_dense to grow");
    }
    before = point.sparsity;
  }
  return OkStatus();
}

Status ValidatePruning(const SparsitySpec& spec, const Timeline& timeline) {
  RETURN_IF_ERROR(CheckTimes(spec, timeline));
  return CheckRising(spec, timeline);
}

std::optional<TopologyAction> DropAndGrow(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step) {
  if (!IsDropEvent(spec, timeline, step)) return std::nullopt;
  return TopologyAction{.sparsity = spec.sparsity,
                        .drop_fraction = DropFractionAt(spec, timeline, step)};
}

SparsitySpec DropAndGrowDefaults() {
  return {.initial_sparsity = -1,
          .update_interval = 100,
          .drop_fraction = 0.3,
          .drop_curve = DropCurve::kCosine,
          .drop_end = 0.75};
}

Status ValidateDropAndGrow(const SparsitySpec& spec, const Timeline& timeline) {
  if (spec.final_drop_fraction > spec.drop_fraction) {
    return Refuse("final_drop_fraction = ", spec.final_drop_fraction,
                  " is above drop_fraction = ", spec.drop_fraction, "; the fraction falls to it");
  }
  if (spec.update_interval <= timeline.steps) return OkStatus();
  return Refuse("update_interval = ", spec.update_interval, " is longer than the phase of ",
                timeline.steps,
                " steps, and nothing would ever be dropped; lower it or lengthen the phase");
}

}  // namespace filigree
