// How long a collective takes, and how large a bucket should be: pure functions of a few numbers.
//
// The model is NCCL's and MPI's own of a ring: R ranks send in `hops` steps, each costing one
// latency and 1/R of the payload over the slowest link,
//   reduce-scatter, all-gather   hops = R - 1
//   all-reduce                   hops = 2 (R - 1), or a tree: 2 log2(hosts) network hops
//   seconds = sum of the hops' latencies + hops / R * bytes / bandwidth
// A ring visits the ranks of a host one after another, so of R - 1 hops, hosts - 1 cross the
// network. Its bandwidth is what one host can send: all the network links of its ranks together, or
// the links inside it where these are slower.
#pragma once

#include <cstdint>
#include <vector>

namespace filigree {

// What joins the ranks. Defaults: hosts of eight H100 with NVLink and a 400 Gb/s adapter a GPU, as
// far as large collectives reach them (about 92 % of the network's rate, 360 GB/s of NVLink's 450);
// latencies are those that NCCL's tuning table gives to a ring of its Simple protocol.
struct LinkSpec {
  double network_gbps = 368;       // Gbit/s of one rank's network link
  double network_latency_us = 14;  // of one hop between hosts
  double node_gbps = 2880;         // Gbit/s between neighbours inside a host
  double node_latency_us = 3.4;    // of one hop inside a host
  int gpus_per_node = 8;           // ranks of one host

  bool operator==(const LinkSpec&) const = default;
};

enum class Collective { kAllReduce, kReduceScatter, kAllGather };

// Hosts that `ranks` fill.
int HostsOf(const LinkSpec& link, int ranks);
// Bytes a second of a ring through all ranks: payload times hops / R divided by this is the time
// without latency ("bus bandwidth").
double RingBandwidth(const LinkSpec& link, int ranks);
// Latency alone of one collective, in seconds; 0 for one rank.
double CollectiveLatency(const LinkSpec& link, Collective collective, int ranks);
// Of a collective over `bytes` (the whole payload, not one rank's slice), in seconds.
double CollectiveSeconds(const LinkSpec& link, Collective collective, int ranks, double bytes);

// Bytes of gradients a bucket where the configuration names none. More buckets cost a latency each,
// larger ones leave more behind that no backward pass hides: a bucket of b bytes of `total_bytes`
// adds total / b latencies L and leaves b / W to the end, the sum of which is least at
// b = sqrt(total * L * W). Never above a quarter of the total, so that most of it can hide, nor
// below 1 MB, where there is nothing to win.
int64_t ChooseBucketBytes(const LinkSpec& link, bool sharded, int ranks, int64_t total_bytes);

// A timed collective over `bytes`.
struct CollectiveTiming {
  Collective collective = Collective::kAllReduce;
  double bytes = 0, seconds = 0;
};
// The ring through `ranks` that explains the timings best: seconds of one hop and bytes a second.
struct RingFit {
  double hop_seconds = 0, bytes_per_second = 0;
  double worst_error = 0;  // largest relative error over the timings
};
// Least squares of the relative errors. Needs two sizes at least and two ranks; a latency that
// would come out negative is 0; a bandwidth that would is the largest that a timing reached, which
// is a lower bound.
RingFit FitRing(const std::vector<CollectiveTiming>& timings, int ranks);

}  // namespace filigree
