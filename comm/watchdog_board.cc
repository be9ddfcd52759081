#include "comm/watchdog_board.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <tuple>

namespace filigree {
namespace {

constexpr size_t kLines = 32;

std::string Name(const RankReport& report) {
  return "rank " + std::to_string(report.rank) + (report.host.empty() ? "" : " on " + report.host);
}

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f s", seconds);
  return text;
}

bool Silent(const RankReport& report, double timeout) {
  return report.broken_seconds < 0 && report.silent_seconds >= timeout;
}

std::string Line(const RankReport& report) {
  std::string line = "  " + Name(report) + ": ";
  if (!report.connected) return line + "not watched";
  if (report.left) return line + "left in order";
  if (report.step >= 0) line += "step " + std::to_string(report.step) + ", ";
  line += report.doing + ", " + std::to_string(report.collectives) + " collectives started";
  if (report.broken_seconds >= 0) return line + ", connection broke";
  if (report.silent_seconds > 3)
    return line + ", not heard of for " + Seconds(report.silent_seconds);
  return line + ", no progress for " + Seconds(report.idle_seconds);
}

std::string Table(std::vector<RankReport> ranks) {
  std::stable_sort(ranks.begin(), ranks.end(), [](const RankReport& a, const RankReport& b) {
    return std::tuple(a.step, a.collectives) < std::tuple(b.step, b.collectives);
  });
  std::string table;
  for (size_t i = 0; i < std::min(ranks.size(), kLines); ++i) table += "\n" + Line(ranks[i]);
  if (ranks.size() > kLines) {
    table += "\n  and " + std::to_string(ranks.size() - kLines) + " ranks further on";
  }
  return table;
}

// "rank 2 on b, rank 3 on b and 5 more"; empty: none is so.
std::string Names(const std::vector<RankReport>& ranks,
                  const std::function<bool(const RankReport&)>& so) {
  constexpr int kNamed = 8;
  std::string names;
  int count = 0;
  for (const RankReport& report : ranks) {
    if (!report.connected || report.left || !so(report)) continue;
    if (count++ < kNamed) names += (names.empty() ? "" : ", ") + Name(report);
  }
  return count > kNamed ? names + " and " + std::to_string(count - kNamed) + " more" : names;
}

}  // namespace

std::string Judge(const std::vector<RankReport>& ranks, double timeout) {
  for (const RankReport& report : ranks) {
    if (!report.error.empty()) return Name(report) + ": " + report.error + Table(ranks);
  }
  const std::string broken = Names(
      ranks, [](const RankReport& report) { return report.broken_seconds >= kBrokenGraceSeconds; });
  if (!broken.empty()) return broken + " ended without a word (killed?)" + Table(ranks);
  const bool silence = std::any_of(ranks.begin(), ranks.end(), [&](const RankReport& report) {
    return report.connected && !report.left && Silent(report, timeout);
  });
  const std::string idle =
      Names(ranks, [&](const RankReport& report) { return report.idle_seconds >= timeout; });
  if (!silence && idle.empty()) return "";
  // Whoever waits for a silent rank stands still too: the silence is the cause.
  const std::string silent =
      Names(ranks, [&](const RankReport& report) { return Silent(report, timeout / 2); });
  if (!silent.empty()) {
    return "no word from " + silent + " for " + Seconds(timeout) +
           ": the host or the link to it is down" + Table(ranks);
  }
  return "no progress for " + Seconds(timeout) + " (parallel.timeout_seconds) of " + idle +
         Table(ranks);
}

}  // namespace filigree
