#include "trainer/topology/selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "kernels/base/rng.h"

namespace filigree {
namespace {

// Keys order as scores do; -0 is 0 and NaN comes before everything.
uint32_t KeyOf(float score) {
  if (std::isnan(score)) return 0;
  const auto bits = std::bit_cast<uint32_t>(score == 0 ? 0.0f : score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

template <typename Fn>
void ForEachCandidate(std::span<const Pool> pools, const Fn& fn) {
  for (size_t p = 0; p < pools.size(); ++p) {
    const auto& candidates = *pools[p].candidates;
    for (size_t unit = 0; unit < candidates.size(); ++unit) {
      if (candidates[unit]) fn(p, unit, KeyOf(pools[p].scores[unit]));
    }
  }
}

// The highest key of which at least `count` candidates have as much or more; *above is how many
// have more. Two passes of 16 bits each.
uint32_t ThresholdKey(std::span<const Pool> pools, int64_t count, int64_t* above) {
  uint32_t prefix = 0;
  *above = 0;
  for (const int shift : {16, 0}) {
    std::vector<int64_t> histogram(1 << 16, 0);
    ForEachCandidate(pools, [&](size_t, size_t, uint32_t key) {
      if (shift == 16 || key >> 16 == prefix) ++histogram[(key >> shift) & 0xffff];
    });
    uint32_t bin = 0xffff;
    while (bin > 0 && *above + histogram[bin] < count) *above += histogram[bin--];
    prefix = prefix << 16 | bin;
  }
  return prefix;
}

}  // namespace

std::vector<std::vector<uint8_t>> SelectHighest(std::span<const Pool> pools, int64_t count,
                                                uint64_t seed, uint64_t event) {
  std::vector<std::vector<uint8_t>> chosen;
  for (const Pool& pool : pools) chosen.emplace_back(pool.candidates->size(), 0);
  int64_t available = 0;
  ForEachCandidate(pools, [&](size_t, size_t, uint32_t) { ++available; });
  count = std::min(count, available);
  if (count <= 0) return chosen;

  int64_t above = 0;
  const uint32_t threshold = ThresholdKey(pools, count, &above);
  std::vector<uint64_t> streams;
  for (const Pool& pool : pools) streams.push_back(RngStream("topology", pool.name, event));
  std::vector<std::tuple<uint64_t, size_t, size_t>> ties;
  ForEachCandidate(pools, [&](size_t p, size_t unit, uint32_t key) {
    if (key > threshold) chosen[p][unit] = 1;
    if (key == threshold) ties.emplace_back(RandomBits(seed, streams[p], unit), p, unit);
  });
  const int64_t wanted = count - above;
  std::nth_element(ties.begin(), ties.begin() + (wanted - 1), ties.end());
  for (int64_t i = 0; i < wanted; ++i) chosen[std::get<1>(ties[i])][std::get<2>(ties[i])] = 1;
  return chosen;
}

}  // namespace filigree
