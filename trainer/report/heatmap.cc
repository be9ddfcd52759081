#include "trainer/report/heatmap.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "trainer/metrics/numbers.h"
#include "trainer/report/markup.h"

namespace filigree::report {
namespace {

constexpr double kLeft = 130, kTop = 8, kRowHeight = 26, kBottom = 44, kWidth = 1080;
// With more columns than this, the percentages no longer fit into the cells.
constexpr int kMaxLabelledColumns = 18;

struct Cell {
  int row = 0, column = 0;
  const LayerData* layer = nullptr;
};

struct Grid {
  std::vector<std::string> rows;     // "mlp.up"
  std::vector<std::string> columns;  // "3"
  std::vector<Cell> cells;
};

std::string RemoveSuffix(std::string text, std::string_view suffix) {
  if (text.ends_with(suffix)) text.resize(text.size() - suffix.size());
  return text;
}

int IndexOf(const std::string& name, std::vector<std::string>* names) {
  const auto found = std::find(names->begin(), names->end(), name);
  if (found == names->end()) {
    names->push_back(name);
    return static_cast<int>(names->size()) - 1;
  }
  return static_cast<int>(found - names->begin());
}

Grid MakeGrid(const std::vector<LayerData>& layers) {
  constexpr std::string_view kPrefix = "layers.";
  Grid grid;
  for (const LayerData& layer : layers) {
    std::string kind = RemoveSuffix(layer.name, ".weight"), column = "other";
    if (kind.starts_with(kPrefix)) {
      const size_t dot = kind.find('.', kPrefix.size());
      if (dot != std::string::npos) {
        column = kind.substr(kPrefix.size(), dot - kPrefix.size());
        kind = kind.substr(dot + 1);
      }
    }
    grid.cells.push_back({IndexOf(kind, &grid.rows), IndexOf(column, &grid.columns), &layer});
  }
  return grid;
}

std::string RenderCell(const Cell& cell, double cell_width, bool labelled) {
  const LayerData& layer = *cell.layer;
  const double x = kLeft + cell.column * cell_width, y = kTop + cell.row * kRowHeight;
  std::string svg = "<g><title>" + EscapeHtml(layer.name) + ": " + FormatPercent(layer.sparsity) +
                    " zeros, " + FormatCount(layer.stored) + " stored of " +
                    FormatCount(layer.logical) + "</title><rect x=\"" + FormatFixed(x + 1, 1) +
                    "\" y=\"" + FormatFixed(y + 1, 1) + "\" width=\"" +
                    FormatFixed(cell_width - 2, 1) + "\" height=\"" +
                    FormatFixed(kRowHeight - 2, 1) + "\" rx=\"3\" fill-opacity=\"" +
                    FormatFixed(0.06 + 0.6 * layer.sparsity, 3) + "\"/>";
  if (labelled) {
    svg += "<text class=\"cell middle\" x=\"" + FormatFixed(x + cell_width / 2, 1) + "\" y=\"" +
           FormatFixed(y + kRowHeight / 2 + 4, 1) + "\">" + FormatFixed(100 * layer.sparsity, 1) +
           "</text>";
  }
  return svg + "</g>\n";
}

std::string RenderLabels(const Grid& grid, double cell_width) {
  std::string svg;
  for (size_t row = 0; row < grid.rows.size(); ++row) {
    const double y = kTop + (static_cast<double>(row) + 0.5) * kRowHeight + 4;
    svg += "<text class=\"tick end\" x=\"" + FormatFixed(kLeft - 8, 1) + "\" y=\"" +
           FormatFixed(y, 1) + "\">" + EscapeHtml(grid.rows[row]) + "</text>\n";
  }
  const double bottom = kTop + static_cast<double>(grid.rows.size()) * kRowHeight;
  // Every n-th column is labelled where they are narrow.
  const size_t every = 1 + static_cast<size_t>(24 / cell_width);
  for (size_t column = 0; column < grid.columns.size(); column += every) {
    const double x = kLeft + (static_cast<double>(column) + 0.5) * cell_width;
    svg += "<text class=\"tick middle\" x=\"" + FormatFixed(x, 1) + "\" y=\"" +
           FormatFixed(bottom + 16, 1) + "\">" + EscapeHtml(grid.columns[column]) + "</text>\n";
  }
  svg += "<text class=\"label middle\" x=\"" + FormatFixed((kLeft + kWidth) / 2, 1) + "\" y=\"" +
         FormatFixed(bottom + 36, 1) + "\">layer</text>\n";
  return svg;
}

}  // namespace

std::string RenderHeatmap(const RunData& run, int color, const std::string& id) {
  const Grid grid = MakeGrid(run.layers);
  const int columns = static_cast<int>(grid.columns.size());
  const double cell_width = (kWidth - kLeft) / columns;
  const double height = kTop + static_cast<double>(grid.rows.size()) * kRowHeight + kBottom;
  double stored = 0, logical = 0;
  for (const LayerData& layer : run.layers) {
    stored += layer.stored;
    logical += layer.logical;
  }
  const std::string title = "Sparsity by layer: " + run.label;
  std::string html =
      "<figure class=\"chart wide\" id=\"" + id + "\">\n<figcaption>" + EscapeHtml(title) +
      " <span class=\"unit\">% zeros in the sparsest phase</span></figcaption>\n"
      "<svg viewBox=\"0 0 " +
      FormatFixed(kWidth, 0) + " " + FormatFixed(height, 0) + "\" role=\"img\" aria-labelledby=\"" +
      id + "-title " + id + "-desc\">\n<title id=\"" + id + "-title\">" + EscapeHtml(title) +
      "</title>\n<desc id=\"" + id + "-desc\">" + FormatCount(stored) + " of " +
      FormatCount(logical) + " sparsifiable weights are stored.</desc>\n<g class=\"cells c" +
      std::to_string(color) + "\">\n";
  for (const Cell& cell : grid.cells) {
    html += RenderCell(cell, cell_width, columns <= kMaxLabelledColumns);
  }
  return html + "</g>\n" + RenderLabels(grid, cell_width) + "</svg>\n</figure>\n";
}

}  // namespace filigree::report
