// Text continuation by sampling.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "data/tokenizer.h"
#include "kernels/backend.h"
#include "trainer/model/model.h"

namespace filigree {

struct SamplingOptions {
  int64_t tokens = 100;
  uint64_t seed = 0;
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 40;        // 0: the whole vocabulary
  int64_t max_context = 0;   // tokens the model may look back; 0: all its positions
};

// `prompt` and its continuation. Ends early at the tokenizer's end of text; a context longer than
// the max_context loses its beginning. `model` must have reserved one sequence of max_context
// tokens. A pure function of its arguments.
std::string Generate(Model& model, const Tokenizer& tokenizer, const std::string& prompt,
                     const SamplingOptions& options, Device& device, Stream& stream);

// The index drawn from softmax(logits / temperature) over the top_k largest, with `uniform` in [0,
// 1). Equal logits are ordered by index.
int64_t SampleIndex(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace filigree
