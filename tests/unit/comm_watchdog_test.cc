// What the watchdog makes of what it knows: comm/watchdog_board.h.
#include <gtest/gtest.h>

#include "comm/watchdog_board.h"

namespace filigree {
namespace {

constexpr double kTimeout = 10;

RankReport Working(int rank, const std::string& host) {
  RankReport report;
  report.rank = rank;
  report.host = host;
  report.connected = true;
  report.step = 5;
  report.collectives = 40;
  report.doing = "training";
  report.idle_seconds = 1;
  return report;
}

std::vector<RankReport> FourRanks() {
  return {Working(0, "a"), Working(1, "a"), Working(2, "b"), Working(3, "b")};
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(WatchdogBoard, AllIsWell) {
  auto ranks = FourRanks();
  ranks[1].idle_seconds = 9.9;
  ranks[2].silent_seconds = 9.9;
  ranks[3].broken_seconds = 1.9;
  EXPECT_EQ(Judge(ranks, kTimeout), "");
}

TEST(WatchdogBoard, WhoLeftInOrderIsNotMissed) {
  auto ranks = FourRanks();
  ranks[3].left = true;
  ranks[3].silent_seconds = ranks[3].idle_seconds = 100;
  EXPECT_EQ(Judge(ranks, kTimeout), "");
  ranks[2].connected = false;
  ranks[2].silent_seconds = 100;
  EXPECT_EQ(Judge(ranks, kTimeout), "");
}

TEST(WatchdogBoard, SilenceIsTheCauseOfStandingStill) {
  auto ranks = FourRanks();
  for (RankReport& rank : ranks) rank.idle_seconds = 10.5;
  ranks[2].silent_seconds = ranks[3].silent_seconds = 9.6;
  const std::string verdict = Judge(ranks, kTimeout);
  EXPECT_EQ(verdict.rfind("no word from rank 2 on b, rank 3 on b for 10 s", 0), 0u) << verdict;
  EXPECT_TRUE(Contains(verdict, "rank 3 on b: step 5, training, 40 collectives started, not heard"))
      << verdict;
}

TEST(WatchdogBoard, ThoseBehindComeFirst) {
  auto ranks = FourRanks();
  for (RankReport& rank : ranks) rank.idle_seconds = 11;
  ranks[2].collectives = 39;
  const std::string verdict = Judge(ranks, kTimeout);
  EXPECT_EQ(verdict.rfind("no progress for 10 s", 0), 0u) << verdict;
  EXPECT_LT(verdict.find("\n  rank 2 on b: "), verdict.find("\n  rank 0 on a: ")) << verdict;
}

TEST(WatchdogBoard, ABrokenConnectionAndAnError) {
  auto ranks = FourRanks();
  ranks[3].broken_seconds = 2;
  EXPECT_EQ(Judge(ranks, kTimeout).rfind("rank 3 on b ended without a word", 0), 0u);
  ranks[1].error = "NCCL failed: unhandled system error";
  EXPECT_EQ(Judge(ranks, kTimeout).rfind("rank 1 on a: NCCL failed", 0), 0u);
}

TEST(WatchdogBoard, ManyRanksAreCounted) {
  std::vector<RankReport> ranks;
  for (int rank = 0; rank < 100; ++rank) {
    ranks.push_back(Working(rank, "a"));
    ranks.back().silent_seconds = 20;
  }
  const std::string verdict = Judge(ranks, kTimeout);
  EXPECT_TRUE(Contains(verdict, "rank 7 on a and 92 more")) << verdict;
  EXPECT_TRUE(Contains(verdict, "and 68 ranks further on")) << verdict;
}

}  // namespace
}  // namespace filigree
