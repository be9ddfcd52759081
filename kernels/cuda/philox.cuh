// Counter-based random numbers on the device, bit for bit those of kernels/base/rng.h.
#pragma once

#include <cstdint>

#include "kernels/base/exact_random.h"

namespace filigree {

// Philox4x32-10.
__device__ __forceinline__ uint4 Philox(uint64_t seed, uint64_t stream, uint64_t index) {
  const exact::Words words = exact::Philox(seed, stream, index);
  return make_uint4(words.w0, words.w1, words.w2, words.w3);
}

__device__ __forceinline__ uint64_t RandomBits64(uint64_t seed, uint64_t stream, uint64_t index) {
  const exact::Words words = exact::Philox(seed, stream, index);
  return (uint64_t{words.w1} << 32) | words.w0;
}

}  // namespace filigree
