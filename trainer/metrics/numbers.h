// Numbers as a person reads them, in logs, tables and reports.
#pragma once

#include <string>

namespace filigree {

// "0", "512", "1.5k", "61.4M", "1.37B", "2.00T": about three digits.
std::string FormatCount(double count);
// "512 B", "1.50 kB", "61.4 MB": powers of 1000, about three digits.
std::string FormatBytes(double bytes);
// "850 ms", "12.3 s", "3m 20s", "1h 02m", "2d 03h".
std::string FormatDuration(double seconds);
// "75.0 %" for 0.75.
std::string FormatPercent(double fraction);
// Fixed point with `digits` decimals.
std::string FormatFixed(double value, int digits);
// "2.98e-04".
std::string FormatScientific(double value);
// The shortest text that reads back as exactly `value`, which must be finite.
std::string FormatExact(double value);

}  // namespace filigree
