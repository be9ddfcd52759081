// The tokenizer of an exported directory.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/status.h"
#include "trainer/export/huggingface_config.h"

namespace filigree {

// Copies the tokenizer's files to `out_dir`, with a tokenizer_config.json that transformers loads
// (one that came with an imported model is kept). Returns the begin and end tokens. An empty
// `tokenizer_dir` writes nothing.
StatusOr<SpecialTokens> ExportTokenizer(const std::string& tokenizer_dir,
                                        const std::string& out_dir, int64_t max_length);

}  // namespace filigree
