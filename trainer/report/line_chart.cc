#include "trainer/report/line_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "trainer/metrics/json_text.h"
#include "trainer/report/markup.h"

namespace filigree::report {
namespace {

// SVG user units; the plot lies inside these margins.
constexpr double kTop = 26, kBottom = 46, kLeft = 66, kRight = 16;
double WidthOf(const LineChart& chart) { return chart.wide ? 1080 : 530; }
double HeightOf(const LineChart& chart) { return chart.wide ? 400 : 300; }

// The x values of a step between ticks that a person would choose: 1, 2 or 5 times a power of ten.
double NiceStep(double range, int intervals) {
  const double rough = range / intervals;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power * 1.0001) return factor * power;
  }
  return 10 * power;
}

struct Axis {
  double low = 0, high = 1, step = 1;     // values; ticks at multiples of step
  double begin_pixel = 0, end_pixel = 1;  // where low and high lie

  double Pixel(double value) const {
    return begin_pixel + (value - low) / (high - low) * (end_pixel - begin_pixel);
  }
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
      ticks.push_back(i * step + 0.0);  // no negative zero
    }
    return ticks;
  }
};

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void Include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

Axis XAxis(const LineChart& chart) {
  Range range;
  for (const Series& series : chart.series) {
    for (const double x : series.x) range.Include(x);
  }
  Axis axis{.low = std::min(range.low, 0.0), .high = range.high};
  if (!(axis.high > axis.low)) axis.high = axis.low + 1;
  axis.step = NiceStep(axis.high - axis.low, chart.wide ? 10 : 5);
  axis.begin_pixel = kLeft;
  axis.end_pixel = WidthOf(chart) - kRight;
  return axis;
}

Axis YAxis(const LineChart& chart) {
  Range range;
  if (chart.y_from_zero) range.Include(0);
  for (const Series& series : chart.series) {
    for (const double y : series.y) range.Include(y);
  }
  for (const LineChart::Reference& reference : chart.references) range.Include(reference.y);
  if (!(range.high > range.low)) {  // one value, or none
    const double middle = std::isfinite(range.low) ? range.low : 0;
    range = {middle - (chart.y_from_zero ? 0 : 0.5), middle + std::max(std::abs(middle), 0.5)};
  }
  Axis axis{.low = range.low, .high = chart.y_max.value_or(range.high)};
  axis.step = NiceStep(axis.high - axis.low, 5);
  axis.low = std::floor(axis.low / axis.step + 1e-9) * axis.step;
  if (!chart.y_max) axis.high = std::ceil(axis.high / axis.step - 1e-9) * axis.step;
  axis.begin_pixel = HeightOf(chart) - kBottom;
  axis.end_pixel = kTop;
  return axis;
}

std::string Pixel(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  return text;
}

std::string Line(double x1, double y1, double x2, double y2, const char* css_class) {
  return "<line class=\"" + std::string(css_class) + "\" x1=\"" + Pixel(x1) + "\" y1=\"" +
         Pixel(y1) + "\" x2=\"" + Pixel(x2) + "\" y2=\"" + Pixel(y2) + "\"/>\n";
}

std::string Text(double x, double y, const char* css_class, const std::string& text) {
  return "<text class=\"" + std::string(css_class) + "\" x=\"" + Pixel(x) + "\" y=\"" + Pixel(y) +
         "\">" + EscapeHtml(text) + "</text>\n";
}

std::string RenderAxes(const LineChart& chart, const Axis& x, const Axis& y) {
  std::string svg;
  for (const double tick : y.Ticks()) {
    svg += Line(x.begin_pixel, y.Pixel(tick), x.end_pixel, y.Pixel(tick), "grid");
    svg += Text(x.begin_pixel - 8, y.Pixel(tick) + 4, "tick end", FormatTick(tick, chart.y_unit));
  }
  for (const double tick : x.Ticks()) {
    svg += Line(x.Pixel(tick), y.begin_pixel, x.Pixel(tick), y.begin_pixel + 4, "axis");
    svg += Text(x.Pixel(tick), y.begin_pixel + 18, "tick middle", FormatTick(tick, Unit::kCount));
  }
  svg += Line(x.begin_pixel, y.begin_pixel, x.end_pixel, y.begin_pixel, "axis");
  svg +=
      Text((x.begin_pixel + x.end_pixel) / 2, HeightOf(chart) - 8, "label middle", chart.x_label);
  const std::string middle = Pixel((y.begin_pixel + y.end_pixel) / 2);
  svg += "<text class=\"label middle\" transform=\"translate(14 " + middle + ") rotate(-90)\">" +
         EscapeHtml(chart.y_label) + "</text>\n";
  return svg;
}

// Labels stand above the plot; one that would run into an earlier one is left to the tooltip.
std::string RenderMarks(const LineChart& chart, const Axis& x, const Axis& y) {
  constexpr double kCharacter = 6;  // about the width of one
  std::string svg;
  std::vector<std::pair<double, double>> taken;
  for (const LineChart::Mark& mark : chart.marks) {
    const double at = x.Pixel(mark.x);
    svg += "<g><title>" + EscapeHtml(mark.label) + "</title>" +
           Line(at, y.begin_pixel, at, y.end_pixel - 6, "mark") + "</g>\n";
    const double width = kCharacter * static_cast<double>(mark.label.size());
    const bool left = at + width > x.end_pixel;
    const double begin = left ? at - width : at, end = begin + width;
    const bool free = std::none_of(taken.begin(), taken.end(), [&](const auto& other) {
      return begin < other.second && other.first < end;
    });
    if (!free) continue;
    taken.emplace_back(begin, end);
    svg += Text(at, y.end_pixel - 11, left ? "note end" : "note", mark.label);
  }
  return svg;
}

std::string RenderReferences(const LineChart& chart, const Axis& x, const Axis& y) {
  std::string svg;
  for (const LineChart::Reference& reference : chart.references) {
    const double at = y.Pixel(reference.y);
    svg += Line(x.begin_pixel, at, x.end_pixel, at, "reference");
    svg += Text(x.end_pixel - 4, at - 5, "note end", reference.label);
  }
  return svg;
}

std::string RenderSeries(const Series& series, const Axis& x, const Axis& y) {
  std::string path, dots;
  bool pen_down = false;
  for (size_t i = 0; i < series.x.size(); ++i) {
    const bool drawn = std::isfinite(series.x[i]) && std::isfinite(series.y[i]);
    if (drawn) {
      const std::string px = Pixel(x.Pixel(series.x[i])), py = Pixel(y.Pixel(series.y[i]));
      path += (pen_down ? "L" : "M") + px + " " + py;
      if (series.strong) dots += "<circle cx=\"" + px + "\" cy=\"" + py + "\" r=\"2.6\"/>";
    }
    pen_down = drawn;
  }
  return "<g class=\"series c" + std::to_string(series.color) +
         (series.strong ? " strong" : " thin") + "\"><title>" + EscapeHtml(series.name) +
         "</title><path d=\"" + path + "\"/>" + dots + "</g>\n";
}

// What a person who cannot see the chart is told.
std::string Describe(const LineChart& chart) {
  std::string text = chart.y_label + " over " + chart.x_label + ".";
  for (const Series& series : chart.series) {
    std::vector<double> values;
    for (const double y : series.y) {
      if (std::isfinite(y)) values.push_back(y);
    }
    if (values.empty()) continue;
    text += " " + series.name + ": from " + FormatUnit(values.front(), chart.y_unit) + " to " +
            FormatUnit(values.back(), chart.y_unit) + ".";
  }
  for (const LineChart::Reference& reference : chart.references) {
    text += " " + reference.label + ".";
  }
  return text;
}

std::string RenderKey(const LineChart& chart) {
  if (chart.strong_name.empty()) return "";
  return " <span class=\"unit\"><i></i>" + EscapeHtml(chart.thin_name) +
         "<i class=\"strong\"></i>" + EscapeHtml(chart.strong_name) + "</span>";
}

std::string JsonNumbers(const std::vector<double>& values) {
  std::string json;
  for (const double value : values) json += (json.empty() ? "" : ",") + NumberJson(value);
  return "[" + json + "]";
}

std::string AxisJson(const Axis& axis) {
  return JsonNumbers({axis.low, axis.high, axis.begin_pixel, axis.end_pixel});
}

}  // namespace

std::string RenderLineChart(const LineChart& chart) {
  const Axis x = XAxis(chart), y = YAxis(chart);
  const std::string size = Pixel(WidthOf(chart)) + " " + Pixel(HeightOf(chart));
  std::string html = "<figure class=\"chart" + std::string(chart.wide ? " wide" : "") + "\" id=\"" +
                     chart.id + "\">\n<figcaption>" + EscapeHtml(chart.title) + RenderKey(chart) +
                     "</figcaption>\n<svg viewBox=\"0 0 " + size +
                     "\" role=\"img\" aria-labelledby=\"" + chart.id + "-title " + chart.id +
                     "-desc\">\n<title id=\"" + chart.id + "-title\">" + EscapeHtml(chart.title) +
                     "</title>\n<desc id=\"" + chart.id + "-desc\">" + EscapeHtml(Describe(chart)) +
                     "</desc>\n";
  html += RenderAxes(chart, x, y);
  html += RenderMarks(chart, x, y) + RenderReferences(chart, x, y);
  for (const Series& series : chart.series) html += RenderSeries(series, x, y);
  return html + "</svg>\n</figure>\n";
}

std::string LineChartJson(const LineChart& chart) {
  std::string series;
  for (const Series& s : chart.series) {
    series += std::string(series.empty() ? "" : ",") + "{\"name\":" + QuoteJson(s.name) +
              ",\"color\":" + std::to_string(s.color) + ",\"x\":" + JsonNumbers(s.x) +
              ",\"y\":" + JsonNumbers(s.y) + "}";
  }
  return "{\"id\":" + QuoteJson(chart.id) + ",\"unit\":\"" + UnitName(chart.y_unit) +
         "\",\"x\":" + AxisJson(XAxis(chart)) + ",\"y\":" + AxisJson(YAxis(chart)) +
         ",\"series\":[" + series + "]}";
}

}  // namespace filigree::report
