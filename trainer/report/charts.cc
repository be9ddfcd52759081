#include "trainer/report/charts.h"

#include <algorithm>
#include <cmath>

#include "trainer/metrics/numbers.h"

namespace filigree::report {
namespace {

// More points than pixels only make the page heavy.
constexpr size_t kMaxPoints = 1200;

// Thins a long series: of each bucket the lowest and the highest value stay, in order, so that no
// spike is lost.
Series Thin(const Series& series) {
  if (series.x.size() <= kMaxPoints) return series;
  Series thin = series;
  thin.x.clear();
  thin.y.clear();
  const size_t buckets = kMaxPoints / 2;
  for (size_t bucket = 0; bucket < buckets; ++bucket) {
    const auto begin =
        series.y.begin() + static_cast<ptrdiff_t>(bucket * series.y.size() / buckets);
    const auto end =
        series.y.begin() + static_cast<ptrdiff_t>((bucket + 1) * series.y.size() / buckets);
    // Where NaNs hide the order, the comparison keeps some point of the bucket.
    const auto [low, high] = std::minmax_element(begin, end);
    for (const auto kept : {std::min(low, high), std::max(low, high)}) {
      thin.x.push_back(series.x[static_cast<size_t>(kept - series.y.begin())]);
      thin.y.push_back(*kept);
    }
  }
  return thin;
}

Series StepSeries(const RunData& run, size_t index, double StepPoint::*value) {
  Series series{.name = run.label, .color = ColorOf(index), .strong = false, .x = {}, .y = {}};
  for (const PhaseData& phase : run.phases) {
    for (const StepPoint& point : phase.steps) {
      series.x.push_back(point.tokens);
      series.y.push_back(point.*value);
    }
  }
  return Thin(series);
}

Series ValidationSeries(const RunData& run, size_t index) {
  Series series{.name = run.label + ", validation",
                .color = ColorOf(index),
                .strong = true,
                .x = {},
                .y = {}};
  for (const PhaseData& phase : run.phases) {
    for (const EvaluationPoint& point : phase.evaluations) {
      series.x.push_back(point.tokens);
      series.y.push_back(point.loss);
    }
  }
  return series;
}

// Phases by name where they begin; runs that change at the same place share a mark.
std::vector<LineChart::Mark> PhaseMarks(const std::vector<RunData>& runs) {
  std::vector<LineChart::Mark> marks;
  for (const RunData& run : runs) {
    if (run.phases.size() < 2) continue;
    for (const PhaseData& phase : run.phases) {
      const bool known = std::any_of(marks.begin(), marks.end(), [&](const LineChart::Mark& mark) {
        return mark.x == phase.begin_tokens && mark.label == phase.name;
      });
      if (!known) marks.push_back({phase.begin_tokens, phase.name});
    }
  }
  return marks;
}

LineChart StepChart(const std::vector<RunData>& runs, double StepPoint::*value) {
  LineChart chart;
  chart.x_label = "tokens seen";
  chart.y_from_zero = true;
  for (size_t i = 0; i < runs.size(); ++i) {
    chart.series.push_back(StepSeries(runs[i], i, value));
  }
  chart.marks = PhaseMarks(runs);
  return chart;
}

LineChart LossChart(const std::vector<RunData>& runs) {
  LineChart chart = StepChart(runs, &StepPoint::loss);
  chart.id = "loss";
  chart.title = "Loss";
  chart.y_label = "loss (nats per token)";
  chart.y_unit = Unit::kLoss;
  chart.y_from_zero = false;
  chart.wide = true;
  chart.thin_name = "training";
  chart.strong_name = "validation";
  for (Series& series : chart.series) series.name += ", training";
  for (size_t i = 0; i < runs.size(); ++i) {
    Series validation = ValidationSeries(runs[i], i);
    if (!validation.x.empty()) chart.series.push_back(std::move(validation));
    if (!runs[i].unigram_entropy) continue;
    const double entropy = *runs[i].unigram_entropy;
    const bool known =
        std::any_of(chart.references.begin(), chart.references.end(),
                    [&](const LineChart::Reference& reference) { return reference.y == entropy; });
    if (!known) {
      chart.references.push_back({entropy, "unigram entropy " + FormatFixed(entropy, 2)});
    }
  }
  return chart;
}

LineChart Named(LineChart chart, const char* id, const char* title, const char* y_label,
                Unit unit) {
  chart.id = id;
  chart.title = title;
  chart.y_label = y_label;
  chart.y_unit = unit;
  return chart;
}

bool HasValues(const LineChart& chart) {
  for (const Series& series : chart.series) {
    if (std::any_of(series.y.begin(), series.y.end(), [](double y) { return std::isfinite(y); })) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::vector<LineChart> MakeCharts(const std::vector<RunData>& runs) {
  std::vector<LineChart> charts;
  charts.push_back(LossChart(runs));
  charts.push_back(
      Named(StepChart(runs, &StepPoint::lr), "lr", "Learning rate", "learning rate", Unit::kRate));
  charts.push_back(Named(StepChart(runs, &StepPoint::sparsity), "sparsity", "Sparsity",
                         "zeros in sparsifiable weights", Unit::kPercent));
  charts.back().y_max = 1;
  charts.push_back(Named(StepChart(runs, &StepPoint::tokens_per_second), "throughput", "Throughput",
                         "tokens per second", Unit::kCount));
  charts.push_back(Named(StepChart(runs, &StepPoint::exchanged_bytes), "exchange",
                         "Exchanged bytes", "bytes per rank and step", Unit::kBytes));
  std::erase_if(charts, [](const LineChart& chart) { return !HasValues(chart); });
  return charts;
}

}  // namespace filigree::report
