// Stochastic rounding as kernels/base/stochastic_rounding.h defines it, bit for bit.
#pragma once

#include <cstdint>

#include "kernels/base/stochastic_rounding.h"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {

// The upper half of the rounded word is the number; `bits` in [0, 65536).
__device__ __forceinline__ uint32_t RoundedWord(float value, uint32_t bits) {
  const uint32_t word = __float_as_uint(value);
  if ((word & 0x7f800000u) == 0x7f800000u) {  // infinities and NaN, which stays one
    return (word & 0x007fffffu) ? word | 0x00400000u : word;
  }
  return word + bits;
}

// Eight numbers of the group that begins at element 8 group of the key's array.
__device__ __forceinline__ Bf16Pack<8> RoundStochastically(const float (&values)[8],
                                                           const RoundingKey& key,
                                                           RoundedNumber number, int64_t group) {
  const uint4 bits = Philox(key.seed, key.stream,
                            static_cast<uint64_t>(group) * 4 + static_cast<uint64_t>(number));
  const auto pair = [&](int i, uint32_t word) {
    const uint32_t low = RoundedWord(values[2 * i], word & 0xffffu);
    const uint32_t high = RoundedWord(values[2 * i + 1], word >> 16);
    return (low >> 16) | (high & 0xffff0000u);
  };
  return {make_uint4(pair(0, bits.x), pair(1, bits.y), pair(2, bits.z), pair(3, bits.w))};
}

}  // namespace filigree
