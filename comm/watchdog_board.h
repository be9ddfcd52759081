// What the watchdog knows of each rank, and what it makes of that: no sockets, no clock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace filigree {

struct RankReport {
  int rank = 0;
  std::string host;
  bool connected = false;      // it was heard of at least once; others are not judged
  bool left = false;           // it said good-bye
  double broken_seconds = -1;  // since its connection broke without a good-bye; -1: it holds
  double silent_seconds = 0;   // since it was last heard of
  std::string error;           // its communicator's asynchronous error
  // As it last reported.
  long long step = -1;
  int64_t collectives = 0;
  std::string doing;  // "training, in all-reduce"
  double idle_seconds = 0;
};

// A launcher that sees a rank die ends the run by itself, with its own words; it gets this long.
inline constexpr double kBrokenGraceSeconds = 2;

// Why the run must end, with one line for each rank, those that are behind first; empty: all is
// well.
std::string Judge(const std::vector<RankReport>& ranks, double timeout_seconds);

}  // namespace filigree
