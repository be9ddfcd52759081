// The positions of a batch ordered by token, so that equal tokens lie side by side.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace filigree {

struct SortedTokens {
  const int32_t* tokens = nullptr;     // [count] ascending
  const int32_t* positions = nullptr;  // [count]; ascending within a token
};

// Bytes of device memory that SortTokens needs for `count` tokens below `token_limit`.
size_t SortTokensBytes(int64_t count, int64_t token_limit);

// Sorts stably; the result lies in `memory` (SortTokensBytes, aligned to 256 bytes). A token that
// is not in [0, token_limit) stops the program.
SortedTokens SortTokens(const int32_t* tokens, int64_t count, int64_t token_limit,
                        std::byte* memory, cudaStream_t stream);

}  // namespace filigree
