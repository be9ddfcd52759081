// Whether token ids of some data are those that a model was trained on.
#pragma once

#include <string>

#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

// `data_dir` is a directory that `filigree prepare` wrote (empty, or without a manifest: nothing is
// known, and all is well). InvalidInput where its tokenizer's file is in the model's tokenizer too,
// with other bytes. A tokenizer that is there in another form only (a SentencePiece model against
// Hugging Face's JSON) cannot be compared.
Status CheckTokenizerOfData(const CheckpointReader& model, const std::string& data_dir);

}  // namespace filigree
