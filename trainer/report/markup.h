// Text inside HTML and values on axes.
#pragma once

#include <string>

namespace filigree::report {

// For text and attribute values.
std::string EscapeHtml(const std::string& text);

// How the values of an axis are written.
enum class Unit { kCount, kBytes, kPercent, kLoss, kRate };

// The name that the page's script knows the unit by.
const char* UnitName(Unit unit);
std::string FormatUnit(double value, Unit unit);
// The same without trailing zeros, as ticks are round numbers: "2.50M" -> "2.5M".
std::string FormatTick(double value, Unit unit);

}  // namespace filigree::report
