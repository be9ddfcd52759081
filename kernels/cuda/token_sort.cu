// PositionsKernel and CUB's radix sort.
// Grid: one thread a token, blocks of 256. Bytes: 8 a token, then two or three radix passes over
// keys and values of 4 bytes each: microseconds beside the gradient rows that the order serves.
#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/token_sort.h"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kAlignment = 256;

__global__ void __launch_bounds__(kThreads)
    PositionsKernel(const int32_t* tokens, int count, int64_t token_limit, int32_t* positions) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  if (tokens[i] < 0 || tokens[i] >= token_limit) __trap();
  positions[i] = i;
}

// Bits that tell the tokens apart; no sort is of zero bits.
int KeyBits(int64_t token_limit) {
  return std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(token_limit - 1))));
}

size_t ListBytes(int64_t count) {
  return AlignUp(count * static_cast<int64_t>(sizeof(int32_t)), kAlignment);
}

// Sorts, or says what it needs where `scratch` is null.
void Sort(void* scratch, size_t* scratch_bytes, const int32_t* keys, int32_t* sorted_keys,
          const int32_t* values, int32_t* sorted_values, int64_t count, int64_t token_limit,
          cudaStream_t stream) {
  CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch, *scratch_bytes, keys, sorted_keys, values,
                                             sorted_values, static_cast<int>(count), 0,
                                             KeyBits(token_limit), stream));
}

size_t ScratchBytes(int64_t count, int64_t token_limit) {
  size_t bytes = 0;
  Sort(nullptr, &bytes, nullptr, nullptr, nullptr, nullptr, count, token_limit, nullptr);
  return bytes;
}

}  // namespace

size_t SortTokensBytes(int64_t count, int64_t token_limit) {
  return 3 * ListBytes(count) + AlignUp(ScratchBytes(count, token_limit), kAlignment);
}

SortedTokens SortTokens(const int32_t* tokens, int64_t count, int64_t token_limit,
                        std::byte* memory, cudaStream_t stream) {
  CHECK(count >= 1 && count <= std::numeric_limits<int32_t>::max()) << count << " tokens";
  const auto list = [&](int i) {
    return reinterpret_cast<int32_t*>(memory + i * ListBytes(count));
  };
  int32_t* positions = list(0);
  PositionsKernel<<<CeilDiv(count, kThreads), kThreads, 0, stream>>>(
      tokens, static_cast<int>(count), token_limit, positions);
  CUDA_CHECK(cudaGetLastError());
  size_t scratch_bytes = ScratchBytes(count, token_limit);
  Sort(list(3), &scratch_bytes, tokens, list(1), positions, list(2), count, token_limit, stream);
  return {.tokens = list(1), .positions = list(2)};
}

}  // namespace filigree
