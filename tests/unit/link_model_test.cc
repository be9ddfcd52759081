// The cost of collectives, the choice of buckets and the fit of a ring: against numbers by hand and
// by search.
#include "comm/link_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace filigree {
namespace {

// 1 GB/s and 10 us a hop between hosts of two ranks, 4 GB/s and 1 us inside.
LinkSpec PlainLinks() {
  return {.network_gbps = 4,
          .network_latency_us = 10,
          .node_gbps = 32,
          .node_latency_us = 1,
          .gpus_per_node = 2};
}

TEST(LinkModelTest, RingByHand) {
  const LinkSpec link = PlainLinks();
  EXPECT_EQ(HostsOf(link, 1), 1);
  EXPECT_EQ(HostsOf(link, 3), 2);
  EXPECT_DOUBLE_EQ(RingBandwidth(link, 2), 4e9);
  EXPECT_DOUBLE_EQ(RingBandwidth(link, 4), 1e9);  // two links of half a GB/s
  EXPECT_EQ(CollectiveSeconds(link, Collective::kAllReduce, 1, 1e9), 0);
  // Four ranks on two hosts: one hop crosses the network, two do not.
  EXPECT_DOUBLE_EQ(CollectiveSeconds(link, Collective::kAllGather, 4, 4e6), 12e-6 + 3e-3);
  EXPECT_DOUBLE_EQ(CollectiveSeconds(link, Collective::kReduceScatter, 4, 4e6), 12e-6 + 3e-3);
}

TEST(LinkModelTest, AllReduceTakesTheShorterOfRingAndTree) {
  const LinkSpec link = PlainLinks();
  // Two hosts: the tree has one level and a chain of one, the ring a hop more inside.
  EXPECT_DOUBLE_EQ(CollectiveSeconds(link, Collective::kAllReduce, 4, 4e6), 2 * (11e-6 + 3e-3));
  // 1,024 hosts: ten levels instead of 1,023 hops.
  EXPECT_DOUBLE_EQ(CollectiveLatency(link, Collective::kAllReduce, 2048), 2 * 101e-6);
  EXPECT_DOUBLE_EQ(CollectiveLatency(link, Collective::kAllGather, 2048), 1023e-5 + 1024e-6);
}

TEST(LinkModelTest, ChosenBucketIsTheCheapest) {
  const LinkSpec link;
  constexpr int64_t kTotal = 5'000'000'000;
  for (int ranks : {2, 8, 16}) {
    for (bool sharded : {false, true}) {
      const Collective collective = sharded ? Collective::kReduceScatter : Collective::kAllReduce;
      // Latencies of all buckets, and the time of the last one.
      const auto cost = [&](double bucket) {
        const double whole = 1e15;  // so large that latency vanishes
        const double per_byte =
            CollectiveSeconds(link, collective, ranks, whole) / whole * ranks / (ranks - 1);
        return static_cast<double>(kTotal) / bucket * CollectiveLatency(link, collective, ranks) +
               bucket * per_byte;
      };
      const auto chosen = static_cast<double>(ChooseBucketBytes(link, sharded, ranks, kTotal));
      EXPECT_LT(chosen, kTotal / 4.0);
      EXPECT_LT(cost(chosen), cost(chosen * 1.05)) << ranks;
      EXPECT_LT(cost(chosen), cost(chosen / 1.05)) << ranks;
    }
  }
}

TEST(LinkModelTest, ChosenBucketHasBounds) {
  const LinkSpec link;
  EXPECT_EQ(ChooseBucketBytes(link, true, 4096, 800'000'000), 200'000'000);  // a quarter
  EXPECT_EQ(ChooseBucketBytes(link, true, 4096, 4000), 1'000'000);
  EXPECT_EQ(ChooseBucketBytes(link, true, 1, 800'000'000), 200'000'000);
  LinkSpec instant = link;
  instant.node_latency_us = instant.network_latency_us = 0;
  EXPECT_EQ(ChooseBucketBytes(instant, true, 64, 800'000'000), 1'000'000);
  // Latency stays below ten per cent of the exchange on one host.
  const auto bucket = static_cast<double>(ChooseBucketBytes(link, true, 8, 5'000'000'000));
  EXPECT_LT(CollectiveLatency(link, Collective::kReduceScatter, 8),
            0.1 * CollectiveSeconds(link, Collective::kReduceScatter, 8, bucket));
}

std::vector<CollectiveTiming> Timings(double hop_seconds, double bytes_per_second, int ranks) {
  std::vector<CollectiveTiming> timings;
  for (Collective collective : {Collective::kAllReduce, Collective::kAllGather}) {
    const double hops = (collective == Collective::kAllReduce ? 2 : 1) * (ranks - 1);
    for (double bytes : {4e3, 1e6, 25e6}) {
      timings.push_back({.collective = collective,
                         .bytes = bytes,
                         .seconds = hops * (hop_seconds + bytes / ranks / bytes_per_second)});
    }
  }
  return timings;
}

TEST(LinkModelTest, FitFindsTheRingThatMadeTheTimings) {
  const RingFit fit = FitRing(Timings(7e-6, 3e9, 6), 6);
  EXPECT_NEAR(fit.hop_seconds, 7e-6, 1e-12);
  EXPECT_NEAR(fit.bytes_per_second, 3e9, 1e3);
  EXPECT_LT(fit.worst_error, 1e-9);
}

TEST(LinkModelTest, FitTellsHowFarItIsOff) {
  std::vector<CollectiveTiming> timings = Timings(7e-6, 3e9, 2);
  timings[1].seconds *= 2;
  const RingFit fit = FitRing(timings, 2);
  EXPECT_GT(fit.worst_error, 0.2);
  EXPECT_LT(fit.worst_error, 0.6);
}

TEST(LinkModelTest, FitHasNoNegativeLatency) {
  // Faster than in proportion when small.
  const std::vector<CollectiveTiming> timings = {{Collective::kAllGather, 1e3, 1e-7},
                                                 {Collective::kAllGather, 1e6, 1e-3}};
  const RingFit fit = FitRing(timings, 2);
  EXPECT_EQ(fit.hop_seconds, 0);
  EXPECT_GT(fit.bytes_per_second, 0);
}

TEST(LinkModelTest, FitHasNoNegativeBandwidth) {
  // A busy machine: the larger payload took half as long. Two ranks, one hop.
  const std::vector<CollectiveTiming> timings = {{Collective::kAllGather, 1e3, 2e-3},
                                                 {Collective::kAllGather, 1e6, 1e-3}};
  const RingFit fit = FitRing(timings, 2);
  EXPECT_DOUBLE_EQ(fit.bytes_per_second, 1e6 / 2 / 1e-3);
  EXPECT_GT(fit.hop_seconds, 1e-3);
  EXPECT_LT(fit.hop_seconds, 2e-3);
}

}  // namespace
}  // namespace filigree
