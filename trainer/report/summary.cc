#include "trainer/report/summary.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "trainer/metrics/numbers.h"
#include "trainer/report/charts.h"
#include "trainer/report/markup.h"

namespace filigree::report {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

double Median(const PhaseData& phase, double StepPoint::*value) {
  std::vector<double> values;
  for (const StepPoint& point : phase.steps) {
    if (std::isfinite(point.*value)) values.push_back(point.*value);
  }
  if (values.empty()) return kMissing;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One step's loss is noisy: the mean of the last tenth, at most 100 steps.
double FinalTrainingLoss(const PhaseData& phase) {
  const size_t count = std::clamp<size_t>(phase.steps.size() / 10, 1, 100);
  double sum = 0;
  for (size_t i = phase.steps.size() - count; i < phase.steps.size(); ++i) {
    sum += phase.steps[i].loss;
  }
  return sum / static_cast<double>(count);
}

std::string Cell(double value, std::string (*format)(double)) {
  return "<td>" + (std::isfinite(value) ? format(value) : std::string("\u2013")) + "</td>";
}

std::string Loss(double value) { return FormatFixed(value, 4); }

std::string RenderRow(const RunData& run, size_t run_index, const PhaseData& phase) {
  double logical = 0;
  for (const LayerData& layer : run.layers) logical += layer.logical;
  const StepPoint& last = phase.steps.back();
  // Sparsity is counted over these weights, so this is exact.
  const double stored = logical > 0 ? std::round((1 - last.sparsity) * logical) : kMissing;
  const double val_loss = phase.evaluations.empty() ? kMissing : phase.evaluations.back().loss;
  return "<tr><th scope=\"row\"><span class=\"key c" + std::to_string(ColorOf(run_index)) +
         "\"></span>" + EscapeHtml(run.label) + "</th><td class=\"text\">" +
         EscapeHtml(phase.name) + "</td>" + Cell(last.step, FormatCount) +
         Cell(last.tokens, FormatCount) + Cell(FinalTrainingLoss(phase), Loss) +
         Cell(val_loss, Loss) + Cell(last.sparsity, FormatPercent) + Cell(stored, FormatCount) +
         Cell(Median(phase, &StepPoint::tokens_per_second), FormatCount) +
         Cell(Median(phase, &StepPoint::step_ms) / 1000, FormatDuration) +
         Cell(Median(phase, &StepPoint::exchanged_bytes), FormatBytes) + "</tr>\n";
}

}  // namespace

std::string RenderSummary(const std::vector<RunData>& runs) {
  std::string html =
      "<div class=\"scroll\"><table>\n<caption>Where each phase ended</caption>\n<thead><tr>";
  for (const char* column : {"Run", "Phase"}) {
    html += "<th scope=\"col\" class=\"text\">" + std::string(column) + "</th>";
  }
  for (const char* column : {"Steps", "Tokens", "Training loss", "Validation loss", "Sparsity",
                             "Stored weights", "Tokens/s", "Step", "Exchanged/step"}) {
    html += "<th scope=\"col\">" + std::string(column) + "</th>";
  }
  html += "</tr></thead>\n<tbody>\n";
  for (size_t i = 0; i < runs.size(); ++i) {
    for (const PhaseData& phase : runs[i].phases) {
      if (!phase.steps.empty()) html += RenderRow(runs[i], i, phase);
    }
  }
  return html +
         "</tbody>\n</table></div>\n<p class=\"fine\">Losses in nats per token; training loss is "
         "the mean of the phase's last steps. Stored weights count the sparsifiable ones. Rates "
         "are medians over the phase.</p>\n";
}

}  // namespace filigree::report
