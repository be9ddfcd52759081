#include "trainer/metrics/json_text.h"

#include <cmath>
#include <cstdio>

#include "trainer/metrics/numbers.h"

namespace filigree {

std::string QuoteJson(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\' || c == '<' || static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string NumberJson(double value) { return std::isfinite(value) ? FormatExact(value) : "null"; }

}  // namespace filigree
