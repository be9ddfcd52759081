// What tokenizer_config.json needs to know of a SentencePiece model file, read from its protocol
// buffer directly (the library itself lives in a plugin and does not tell).
#pragma once

#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace filigree {

struct SentencePieceSummary {
  bool is_bpe = false;
  std::string bos, eos, unk;  // pieces; empty where there is none
};

// The pieces at ids `bos_id` and `eos_id` (-1: none), and the unknown piece. `place` names the file
// in errors (InvalidInput).
StatusOr<SentencePieceSummary> SummarizeSentencePiece(std::string_view model_bytes, int bos_id,
                                                      int eos_id, const std::string& place);

}  // namespace filigree
