// Line charts as inline SVG, with the same data as JSON for the page's script.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/report/markup.h"

namespace filigree::report {

struct Series {
  std::string name;
  int color = 0;        // of the page's palette
  bool strong = false;  // thick with a dot at each point, for few points; else thin
  std::vector<double> x, y;
};

struct LineChart {
  std::string id;  // unique in the page
  std::string title;
  std::string x_label, y_label;
  Unit y_unit = Unit::kCount;
  bool y_from_zero = false;
  std::optional<double> y_max;  // where the scale has a natural end
  std::vector<Series> series;
  // What thin and strong lines mean, shown beside the title; empty where there is one kind.
  std::string thin_name, strong_name;
  // Vertical lines: where phases begin.
  struct Mark {
    double x = 0;
    std::string label;
  };
  std::vector<Mark> marks;
  // A dashed horizontal line to compare with.
  struct Reference {
    double y = 0;
    std::string label;
  };
  std::vector<Reference> references;
  bool wide = false;  // the whole width of the page
};

// <figure> with the SVG. Points that are not finite leave gaps.
std::string RenderLineChart(const LineChart& chart);
// A JSON object: scales, plot area and the series as drawn, for the values under the pointer.
std::string LineChartJson(const LineChart& chart);

}  // namespace filigree::report
