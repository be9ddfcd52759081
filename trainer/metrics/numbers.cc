#include "trainer/metrics/numbers.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "kernels/base/check.h"

namespace filigree {
namespace {

template <typename... Args>
std::string Print(const char* format, Args... args) {
  char text[64];
  // FormatFixed of 1e308 is the one value that would not fit; its tail is cut.
  std::snprintf(text, sizeof(text), format, args...);
  return text;
}

// Three digits and the prefix of a power of 1000.
std::string WithPrefix(double value, const char* const (&prefixes)[6], bool whole_units) {
  if (!std::isfinite(value)) return Print("%g ", value);
  int prefix = 0;
  double scaled = value;
  // 999.95 would print as "1000.0".
  while (std::abs(scaled) >= 999.5 && prefix < 5) {
    scaled /= 1000;
    ++prefix;
  }
  const double size = std::abs(scaled);
  const int digits = prefix == 0 && whole_units ? 0 : size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return Print("%.*f%s", digits, scaled, prefixes[prefix]);
}

}  // namespace

std::string FormatCount(double count) {
  return WithPrefix(count, {"", "k", "M", "B", "T", "Q"}, count == std::floor(count));
}

std::string FormatBytes(double bytes) {
  return WithPrefix(bytes, {" B", " kB", " MB", " GB", " TB", " PB"}, /*whole_units=*/true);
}

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "unknown";
  if (seconds < 0.9995) return Print("%.0f ms", seconds * 1000);
  if (seconds < 59.95) return Print("%.1f s", seconds);
  const auto total = static_cast<long long>(std::llround(seconds));
  const long long minutes = total / 60, hours = minutes / 60, days = hours / 24;
  if (hours == 0) return Print("%lldm %02llds", minutes, total % 60);
  if (days == 0) return Print("%lldh %02lldm", hours, minutes % 60);
  return Print("%lldd %02lldh", days, hours % 24);
}

std::string FormatPercent(double fraction) { return Print("%.1f %%", 100 * fraction); }

std::string FormatFixed(double value, int digits) { return Print("%.*f", digits, value); }

std::string FormatScientific(double value) { return Print("%.2e", value); }

std::string FormatExact(double value) {
  CHECK(std::isfinite(value));
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof(text), value);
  CHECK(error == std::errc());
  return std::string(text, end);
}

}  // namespace filigree
