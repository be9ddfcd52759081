// config.json and generation_config.json of Hugging Face transformers, versions 4 and 5.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/dtype.h"
#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

// -1 where there is none.
struct SpecialTokens {
  int64_t bos = -1, eos = -1;
};

// Both texts carry what either version reads: rope_theta and rope_parameters, torch_dtype and
// dtype. `dtype` is kBF16 or kF32.
std::string HfConfigText(const ModelSpec& model, DType dtype, SpecialTokens tokens);
std::string HfGenerationConfigText(SpecialTokens tokens);

// The model that a config.json describes, padded to a vocabulary of a multiple of 64. `place` names
// the file in errors (InvalidInput): damaged, another architecture, a feature that we do not have.
StatusOr<ModelSpec> ParseHfConfig(std::string_view text, const std::string& place);

// The token ids of a generation_config.json or config.json. Of several end tokens, the first.
StatusOr<SpecialTokens> ParseSpecialTokens(std::string_view text, const std::string& place);

// The text of a tokenizer_config.json beside a tokenizer.json. Tokens that are empty are left out.
struct TokenizerConfig {
  std::string bos, eos, unk;
  int64_t max_length = 0;
};
std::string HfTokenizerConfigText(const TokenizerConfig& config);
// The content of the added token `id` in a tokenizer.json, or empty.
std::string AddedTokenContent(std::string_view tokenizer_json, int64_t id);

}  // namespace filigree
