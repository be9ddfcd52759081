// Models of others: Hugging Face directories of the llama and GPT-2 families, as dense checkpoints.
//
// Read: config.json of transformers 4 or 5, model.safetensors or its shards, in BF16, F16, F32 or
// F64. Names may lack the "transformer." prefix, and buffers that are no parameters ("attn.bias",
// "inv_freq") are passed over. Everything else that is not in the family's table is refused by
// name.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

// The directory as a checkpoint at step 0 without moments or configuration; weights stay in the
// mapped files until they are read. The tokenizer's directory is the model's. A directory of
// SLTrain's trainer is opened as one (sltrain_checkpoint.h).
StatusOr<std::unique_ptr<CheckpointReader>> OpenHuggingFace(const std::string& hf_dir);

// Writes it as a checkpoint of our own.
Status ImportHuggingFace(const std::string& hf_dir, const std::string& checkpoint_dir);

}  // namespace filigree
