// Checkpoints of SLTrain's own trainer (github.com/andyjm3/SLTrain), read and written.
//
//   config.json           of the llama
//   splora_config.json    r, lora_alpha, ...: the scale of B A, alpha / r, stands nowhere else
//   model.safetensors     for each wrapped linear PREFIX (q, k, v, o, gate, up, down):
//   PREFIX.lora_A
//                         [r, in], PREFIX.lora_B [out, r], PREFIX.sparse_value [stored] and
//                         PREFIX.sparse_index [stored], I64, row-major flat and ascending; no
//                         PREFIX.weight. All else as Hugging Face names it.
//
// Its trainer may write pytorch_model.bin instead, which is not read: convert it with
// safetensors.torch.save_file(torch.load("pytorch_model.bin"), "model.safetensors").
#pragma once

#include <memory>
#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

// Whether the directory holds such a checkpoint.
bool IsSltrain(const std::string& directory);

// As OpenHuggingFace: a checkpoint at step 0 without moments; linears that the file has factors of
// are sparse_plus_low_rank over its indices, the others dense.
StatusOr<std::unique_ptr<CheckpointReader>> OpenSltrain(const std::string& directory);

// Writes a checkpoint whose attention and feed-forward matrices are sparse_plus_low_rank with
// single weights, of one rank and scale, without merging anything. `out_dir` must not exist or be
// empty. `dtype`: kBF16 or kF32.
Status ExportSltrain(const CheckpointReader& reader, const std::string& out_dir, DType dtype);

}  // namespace filigree
