// JSON written by hand: the two kinds of value that need care.
#pragma once

#include <string>

namespace filigree {

// A JSON string. It may also stand inside a <script> element: "<" is escaped.
std::string QuoteJson(const std::string& text);
// A JSON number that reads back exactly; null for what JSON cannot say (NaN, infinities).
std::string NumberJson(double value);

}  // namespace filigree
