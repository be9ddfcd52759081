#include "trainer/report/markup.h"

#include <algorithm>

#include "trainer/metrics/numbers.h"

namespace filigree::report {

std::string EscapeHtml(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

const char* UnitName(Unit unit) {
  switch (unit) {
    case Unit::kCount:
      return "count";
    case Unit::kBytes:
      return "bytes";
    case Unit::kPercent:
      return "percent";
    case Unit::kLoss:
      return "loss";
    case Unit::kRate:
      return "rate";
  }
  return "";
}

std::string FormatUnit(double value, Unit unit) {
  switch (unit) {
    case Unit::kCount:
      return FormatCount(value);
    case Unit::kBytes:
      return FormatBytes(value);
    case Unit::kPercent:
      return FormatFixed(100 * value, 0) + " %";
    case Unit::kLoss:
      return FormatFixed(value, 2);
    case Unit::kRate:
      return value == 0 ? "0" : FormatScientific(value);
  }
  return "";
}

std::string FormatTick(double value, Unit unit) {
  std::string text = FormatUnit(value, unit);
  const size_t dot = text.find('.');
  if (dot == std::string::npos) return text;
  const size_t end = std::min(text.find_first_not_of("0123456789", dot + 1), text.size());
  const size_t last = text.find_last_not_of('0', end - 1);
  const size_t keep = last == dot ? dot : last + 1;
  return text.erase(keep, end - keep);
}

}  // namespace filigree::report
