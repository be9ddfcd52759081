#include "trainer/topology/selection.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <compare>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/base/rng.h"

namespace filigree {
namespace {

// Keys order as scores do; -0 is 0 and NaN comes before everything.
uint32_t KeyOf(float score) {
  if (std::isnan(score)) return 0;
  const auto bits = std::bit_cast<uint32_t>(score == 0 ? 0.0f : score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

int Threads() { return omp_get_max_threads(); }

// Calls fn(thread, pool, begin, end) for ranges of units that cover all pools, from Threads()
// threads. Whether a unit is a candidate is anybody's guess, so loops over them count with the flag
// instead of branching on it.
template <typename Fn>
void ForEachRange(std::span<const Pool> pools, const Fn& fn) {
#pragma omp parallel num_threads(Threads())
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (size_t p = 0; p < pools.size(); ++p) {
      const auto units = static_cast<int64_t>(pools[p].candidates->size());
      fn(static_cast<size_t>(thread), p, units * thread / threads, units * (thread + 1) / threads);
    }
  }
}

using Histogram = std::vector<int64_t>;

// How many candidates have each value of 16 bits of their keys; with `prefix`, of those keys alone
// that begin with it.
Histogram CountKeys(std::span<const Pool> pools, int shift, std::optional<uint32_t> prefix) {
  std::vector<Histogram> counts(Threads(), Histogram(1 << 16, 0));
  const bool all = !prefix;
  const uint32_t begins = prefix.value_or(0);
  ForEachRange(pools, [&](size_t thread, size_t p, int64_t begin, int64_t end) {
    const uint8_t* candidates = pools[p].candidates->data();
    const float* scores = pools[p].scores.data();
    int64_t* count = counts[thread].data();
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint32_t key = KeyOf(scores[unit]);
      count[(key >> shift) & 0xffff] += candidates[unit] & (all | (key >> 16 == begins));
    }
  });
  for (size_t thread = 1; thread < counts.size(); ++thread) {
    for (size_t bin = 0; bin < counts[0].size(); ++bin) counts[0][bin] += counts[thread][bin];
  }
  return std::move(counts[0]);
}

// The highest key of which at least `count` of the candidates, whose keys' upper halves
// `upper` counts, have as much or more; *above is how many have more. One pass over what begins as
// that key does.
uint32_t ThresholdKey(std::span<const Pool> pools, const Histogram& upper, int64_t count,
                      int64_t* above) {
  *above = 0;
  const auto bin_of = [&](const Histogram& histogram) {
    uint32_t bin = 0xffff;
    while (bin > 0 && *above + histogram[bin] < count) *above += histogram[bin--];
    return bin;
  };
  const uint32_t prefix = bin_of(upper);
  return prefix << 16 | bin_of(CountKeys(pools, 0, prefix));
}

// A candidate that has the threshold's score.
struct Tie {
  uint64_t order;  // drawn
  size_t pool;
  int64_t unit;
  auto operator<=>(const Tie&) const = default;
};

}  // namespace

std::vector<std::vector<uint8_t>> SelectHighest(std::span<const Pool> pools, int64_t count,
                                                uint64_t seed, uint64_t event) {
  std::vector<std::vector<uint8_t>> chosen;
  for (const Pool& pool : pools) chosen.emplace_back(pool.candidates->size(), 0);
  const Histogram upper = CountKeys(pools, 16, std::nullopt);
  count = std::min(count, std::accumulate(upper.begin(), upper.end(), int64_t{0}));
  if (count <= 0) return chosen;

  int64_t above = 0;
  const uint32_t threshold = ThresholdKey(pools, upper, count, &above);
  std::vector<uint64_t> streams;
  for (const Pool& pool : pools) streams.push_back(RngStream("topology", pool.name, event));
  std::vector<std::vector<Tie>> found(Threads());
  ForEachRange(pools, [&](size_t thread, size_t p, int64_t begin, int64_t end) {
    const uint8_t* candidates = pools[p].candidates->data();
    const float* scores = pools[p].scores.data();
    uint8_t* mark = chosen[p].data();
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint32_t key = KeyOf(scores[unit]);
      mark[unit] = candidates[unit] & (key > threshold);
      if (key != threshold || !candidates[unit]) continue;
      const uint64_t order = RandomBits(seed, streams[p], static_cast<uint64_t>(unit));
      found[thread].push_back({order, p, unit});
    }
  });
  std::vector<Tie> ties = std::move(found[0]);
  for (size_t thread = 1; thread < found.size(); ++thread) {
    ties.insert(ties.end(), found[thread].begin(), found[thread].end());
  }
  const int64_t wanted = count - above;
  std::nth_element(ties.begin(), ties.begin() + (wanted - 1), ties.end());
  for (int64_t i = 0; i < wanted; ++i) chosen[ties[i].pool][ties[i].unit] = 1;
  return chosen;
}

}  // namespace filigree
