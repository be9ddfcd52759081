// A decoder small enough to test, whose products every kernel of ours can take.
#pragma once

#include <cstdint>

#include "trainer/spec.h"

namespace filigree {

inline ModelSpec SmallGpuModel(ModelFamily family, int64_t layers, int64_t seq_len) {
  const bool llama = family == ModelFamily::kLlama;
  return {.family = family,
          .layers = layers,
          .width = 256,
          .heads = 4,
          .kv_heads = llama ? 2 : 4,
          .head_size = 64,
          .feed_forward = 512,
          .vocab_size = 500,
          .padded_vocab_size = 512,
          .max_positions = seq_len,
          .tied_head = !llama};
}

}  // namespace filigree
