#include "trainer/scaling_model.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace filigree {
namespace {

constexpr double kForwardShare = 1.0 / 3.0, kBackwardShare = 2.0 / 3.0;
constexpr double kScalarBytes = 8;

// Seconds after the end of a backward pass of `pass_seconds` until the last gradient is there.
double ExposedGradients(const LinkSpec& link, const std::vector<Transfer>& transfers,
                        double pass_seconds, int ranks) {
  double free = 0;
  for (const Transfer& transfer : transfers) {
    free = std::max(free, transfer.at * pass_seconds) +
           CollectiveSeconds(link, transfer.collective, ranks, transfer.bytes);
  }
  return std::max(0.0, free - pass_seconds);
}

// Seconds that a forward pass of `pass_seconds` stands still for values.
double ExposedValues(const LinkSpec& link, const std::vector<Transfer>& transfers,
                     double pass_seconds, int ranks) {
  double arrived = 0, stalled = 0;
  for (const Transfer& transfer : transfers) {
    arrived += CollectiveSeconds(link, transfer.collective, ranks, transfer.bytes);
    stalled = std::max(stalled, arrived - transfer.at * pass_seconds);
  }
  return stalled;
}

double BusySeconds(const LinkSpec& link, const std::vector<Transfer>& transfers, int ranks) {
  double seconds = 0;
  for (const Transfer& transfer : transfers) {
    seconds += CollectiveSeconds(link, transfer.collective, ranks, transfer.bytes);
  }
  return seconds;
}

}  // namespace

StepPrediction PredictStep(const LinkSpec& link, const ComputeTimes& compute,
                           const StepExchange& exchange, int ranks) {
  CHECK_GE(compute.micro_batches, 1);
  const double micro_batch = compute.step_seconds / compute.micro_batches;
  StepPrediction step;
  step.exposed_gradients =
      ExposedGradients(link, exchange.backward, kBackwardShare * micro_batch, ranks);
  step.exposed_values = ExposedValues(link, exchange.forward, kForwardShare * micro_batch, ranks);
  step.scalars = exchange.scalar_reductions *
                 CollectiveSeconds(link, Collective::kAllReduce, ranks, kScalarBytes);
  step.jitter = compute.step_seconds * compute.jitter * ExpectedMaximum(HostsOf(link, ranks));
  step.exchange =
      BusySeconds(link, exchange.backward, ranks) + BusySeconds(link, exchange.forward, ranks);
  step.seconds = compute.step_seconds + step.exposed_gradients + step.exposed_values +
                 step.scalars + step.jitter;
  step.efficiency = compute.step_seconds / step.seconds;
  return step;
}

double ExpectedMaximum(int n) {
  CHECK_GE(n, 1);
  if (n == 1) return 0;
  // E[max] = integral of 1 - F^n over the positive numbers less that of F^n over the negative ones.
  constexpr double kEnd = 9, kWidth = 1e-3;
  const auto below = [&](double x) { return std::pow(0.5 * std::erfc(-x / std::sqrt(2.0)), n); };
  double sum = 0;
  for (double x = kWidth / 2; x < kEnd; x += kWidth) sum += (1 - below(x)) - below(-x);
  return sum * kWidth;
}

}  // namespace filigree
