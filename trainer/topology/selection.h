// Exact selection of the highest scores, the same on every rank.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace filigree {

// Units of one weight that may be chosen.
struct Pool {
  std::string_view name;                   // of the weight: part of the tie-break
  std::span<const float> scores;           // of all its units
  const std::vector<uint8_t>* candidates;  // 1: may be chosen
};

// Marks the `count` candidates of highest score over all pools, exactly `count` of them (at most
// all). Equal scores go by a hash of (seed, event, weight, unit), so that no row is favoured and
// all ranks agree. NaN ranks lowest. O(units) time; `event` separates draws at one step (see
// update.cc).
std::vector<std::vector<uint8_t>> SelectHighest(std::span<const Pool> pools, int64_t count,
                                                uint64_t seed, uint64_t event);

}  // namespace filigree
