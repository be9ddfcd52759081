#include "trainer/report/report.h"

#include <algorithm>

#include "data/file_io.h"
#include "trainer/report/charts.h"
#include "trainer/report/heatmap.h"
#include "trainer/report/page_assets.h"
#include "trainer/report/summary.h"

namespace filigree {
namespace report {
namespace {

std::string TitleOf(const std::vector<RunData>& runs) {
  if (runs.size() == 1) return runs.front().label;
  return std::to_string(runs.size()) + " runs compared";
}

std::string RenderLegend(const std::vector<RunData>& runs) {
  if (runs.size() == 1) return "";
  std::string html = "<ul class=\"legend\">\n";
  for (size_t i = 0; i < runs.size(); ++i) {
    html += "<li><span class=\"key c" + std::to_string(ColorOf(i)) + "\"></span>" +
            EscapeHtml(runs[i].label) + "</li>\n";
  }
  return html + "</ul>\n";
}

bool IsDense(const RunData& run) {
  return std::all_of(run.layers.begin(), run.layers.end(),
                     [](const LayerData& layer) { return layer.sparsity == 0; });
}

std::string RenderCharts(const std::vector<RunData>& runs, const std::vector<LineChart>& charts) {
  std::string html = "<div class=\"charts\">\n";
  for (const LineChart& chart : charts) html += RenderLineChart(chart);
  for (size_t i = 0; i < runs.size(); ++i) {
    if (IsDense(runs[i])) continue;
    html += RenderHeatmap(runs[i], ColorOf(i), "layers-" + std::to_string(i));
  }
  return html + "</div>\n";
}

std::string RenderConfigs(const std::vector<RunData>& runs) {
  std::string html = "<h2>Configurations</h2>\n";
  for (const RunData& run : runs) {
    html += "<details><summary>" + EscapeHtml(run.label) + " <code>" + EscapeHtml(run.directory) +
            "</code></summary>\n<pre>" + EscapeHtml(run.config_text) + "</pre></details>\n";
  }
  return html;
}

std::string RenderPage(const std::vector<RunData>& runs) {
  const std::vector<LineChart> charts = MakeCharts(runs);
  std::string data;
  for (const LineChart& chart : charts) data += (data.empty() ? "" : ",\n") + LineChartJson(chart);
  const std::string title = EscapeHtml(TitleOf(runs));
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
         title + " \u00b7 Filigree</title>\n<style>" + kPageStyle +
         "</style>\n</head>\n<body>\n<main>\n<h1>" + title +
         "</h1>\n<p class=\"lead\">Filigree training report</p>\n" + RenderSummary(runs) +
         "<h2>Curves</h2>\n" + RenderLegend(runs) + RenderCharts(runs, charts) +
         RenderConfigs(runs) + "</main>\n<script type=\"application/json\" id=\"data\">[" + data +
         "]</script>\n<script>" + kPageScript + "</script>\n</body>\n</html>\n";
}

}  // namespace
}  // namespace report

Status WriteReport(const std::vector<std::string>& runs, const std::string& out_html) {
  ASSIGN_OR_RETURN(const std::vector<report::RunData> data, report::ReadRuns(runs));
  return WriteFileAtomically(out_html, report::RenderPage(data));
}

}  // namespace filigree
