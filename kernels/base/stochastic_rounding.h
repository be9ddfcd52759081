// Stochastic rounding of fp32 to bfloat16: up or down with the probabilities that make the expected
// result the number itself, so that updates far below a weight's precision still move it on
// average. Random bits are a pure function of a key and the element, like all of a run's.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "kernels/base/dtype.h"
#include "kernels/base/rng.h"

namespace filigree {

// Names the random bits of one rounding of an array: element i of a range has those of element
// first + i of the whole array, so that they do not depend on how the array is cut.
struct RoundingKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first = 0;  // a multiple of 8
};

// Of arrays that lie one after the other in those of a call: the elements from `begin` on, a
// multiple of 256, to the next range's, are those of `key`'s array.
struct RoundedRange {
  int64_t begin = 0;
  RoundingKey key;

  // What the bits of elements i .. i + 7 of the call are drawn for.
  int64_t GroupOf(int64_t i) const { return (key.first + i - begin) / 8; }
};

// The range that element i belongs to. They ascend, the first begins at 0.
inline const RoundedRange& RangeOf(std::span<const RoundedRange> ranges, int64_t i) {
  const auto next = std::upper_bound(
      ranges.begin(), ranges.end(), i,
      [](int64_t element, const RoundedRange& range) { return element < range.begin; });
  return *(next - 1);
}

// Which of an element's numbers is rounded: each has bits of its own.
enum class RoundedNumber : int { kWeight = 0, kM = 1, kV = 2 };

// `bits` in [0, 65536), uniform. Infinities and NaN keep what they are.
inline BFloat16 RoundStochastically(float value, uint32_t bits) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  if ((word & 0x7f800000u) == 0x7f800000u) return BFloat16(value);
  BFloat16 rounded;
  rounded.bits = static_cast<uint16_t>((word + bits) >> 16);
  return rounded;
}

// The bits of elements 8 group .. 8 group + 7: sixteen each, the lower half of a word first.
inline std::array<uint32_t, 8> RoundingBits(const RoundingKey& key, RoundedNumber number,
                                            int64_t group) {
  const auto words = Philox4x32(key.seed, key.stream,
                                static_cast<uint64_t>(group) * 4 + static_cast<uint64_t>(number));
  std::array<uint32_t, 8> bits;
  for (int i = 0; i < 8; ++i) bits[i] = (words[i / 2] >> (16 * (i % 2))) & 0xffffu;
  return bits;
}

}  // namespace filigree
