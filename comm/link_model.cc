#include "comm/link_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

constexpr double kMicro = 1e-6;
constexpr double kBytesPerGigabit = 1e9 / 8;
constexpr int64_t kSmallestBucketBytes = 1'000'000;
constexpr int64_t kFewestBuckets = 4;

// Passes over the ring: an all-reduce is a reduce-scatter and an all-gather.
double PassesOf(Collective collective) { return collective == Collective::kAllReduce ? 2 : 1; }

double RingLatency(const LinkSpec& link, int ranks) {
  const int network_hops = HostsOf(link, ranks) - 1;
  const int node_hops = ranks - 1 - network_hops;
  return (network_hops * link.network_latency_us + node_hops * link.node_latency_us) * kMicro;
}

// One way through a tree of hosts, in each of which a chain joins the ranks.
double TreeLatency(const LinkSpec& link, int ranks) {
  const double levels = std::ceil(std::log2(HostsOf(link, ranks)));
  const int chain = std::min(ranks, link.gpus_per_node) - 1;
  return (levels * link.network_latency_us + chain * link.node_latency_us) * kMicro;
}

}  // namespace

int HostsOf(const LinkSpec& link, int ranks) {
  return static_cast<int>(CeilDiv(ranks, link.gpus_per_node));
}

double RingBandwidth(const LinkSpec& link, int ranks) {
  const double node = link.node_gbps * kBytesPerGigabit;
  const double network = link.network_gbps * link.gpus_per_node * kBytesPerGigabit;
  if (HostsOf(link, ranks) == 1) return node;
  return link.gpus_per_node == 1 ? network : std::min(node, network);
}

double CollectiveLatency(const LinkSpec& link, Collective collective, int ranks) {
  if (ranks == 1) return 0;
  const double ring = RingLatency(link, ranks);
  if (collective != Collective::kAllReduce) return ring;
  return 2 * std::min(ring, TreeLatency(link, ranks));
}

double CollectiveSeconds(const LinkSpec& link, Collective collective, int ranks, double bytes) {
  if (ranks == 1) return 0;
  const double share = static_cast<double>(ranks - 1) / ranks;
  return CollectiveLatency(link, collective, ranks) +
         PassesOf(collective) * share * bytes / RingBandwidth(link, ranks);
}

int64_t ChooseBucketBytes(const LinkSpec& link, bool sharded, int ranks, int64_t total_bytes) {
  const Collective collective = sharded ? Collective::kReduceScatter : Collective::kAllReduce;
  const double latency = CollectiveLatency(link, collective, ranks);
  const double bandwidth = RingBandwidth(link, ranks) / PassesOf(collective);
  const double best = std::sqrt(static_cast<double>(total_bytes) * latency * bandwidth);
  const int64_t largest = std::max(total_bytes / kFewestBuckets, kSmallestBucketBytes);
  // One rank sends nothing; its buckets are as large as they may be.
  if (ranks == 1) return largest;
  return std::clamp(static_cast<int64_t>(best), kSmallestBucketBytes, largest);
}

RingFit FitRing(const std::vector<CollectiveTiming>& timings, int ranks) {
  CHECK_GE(ranks, 2);
  CHECK_GE(timings.size(), 2u);
  // Per hop: seconds / hops = latency + (bytes / ranks) / bandwidth, each row divided by its left
  // side, so that small collectives decide the latency and large ones the bandwidth.
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  const auto row = [&](const CollectiveTiming& t) {
    const double per_hop = t.seconds / (PassesOf(t.collective) * (ranks - 1));
    return std::pair<double, double>(1 / per_hop, t.bytes / ranks / per_hop);
  };
  for (const CollectiveTiming& timing : timings) {
    const auto [a, b] = row(timing);
    aa += a * a, ab += a * b, bb += b * b, a1 += a, b1 += b;
  }
  const double determinant = aa * bb - ab * ab;
  CHECK(determinant > 0) << "all collectives have one size";
  double latency = (a1 * bb - b1 * ab) / determinant;
  double inverse = (b1 * aa - a1 * ab) / determinant;
  if (latency < 0) latency = 0, inverse = b1 / bb;
  if (inverse <= 0) {  // larger ones took no longer: the fastest of them is all that is known
    inverse = std::numeric_limits<double>::infinity();
    for (const CollectiveTiming& timing : timings) {
      inverse = std::min(inverse, 1 / row(timing).second);
    }
    latency = a1 / aa;
  }
  RingFit fit{.hop_seconds = latency, .bytes_per_second = 1 / inverse};
  for (const CollectiveTiming& timing : timings) {
    const auto [a, b] = row(timing);
    fit.worst_error = std::max(fit.worst_error, std::abs(a * latency + b * inverse - 1));
  }
  return fit;
}

}  // namespace filigree
