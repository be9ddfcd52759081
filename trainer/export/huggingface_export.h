// Export to Hugging Face transformers: a dense checkpoint that AutoModelForCausalLM loads and the
// next user fine-tunes.
//
//   model.safetensors             or model-00001-of-0000K.safetensors; the index is written for one
//                                 file too: loaders that read every *.safetensors of a directory
//                                 then know which are the model's
//   config.json, generation_config.json, tokenizer files
//   filigree_layouts.safetensors  which cells are stored: for each sparse tensor NAME, as NAME and
//                                 shape stand in the model files, U8 NAME.mask: bit i % 8 (least
//                                 significant first) of byte i / 8 is cell i, row-major; bits past
//                                 the last cell are zero. Metadata NAME.layout is a JSON object:
//                                 shape, density, and of each part (GPT-2's q, k, v are stacked)
//                                 the parameter, kind, block_rows, block_cols and density, and of
//                                 low-rank factors beside those cells rank and scale: the model's
//                                 weight is W = scale * B A + the stored cells, merged in fp32.
//                                 What `padded` filled up is not stored.
//
// Metadata of every file: producer, step, config_xxh64 (of the effective configuration).
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

struct ExportOptions {
  DType dtype = DType::kBF16;  // or kF32; bf16 is rounded to nearest even
  int64_t max_shard_bytes = 5'000'000'000;
  bool padded = false;  // fills layers that differ up to one size with zeros (export_form.h)
};

// Written aside, then renamed to `out_dir`. InvalidInput: a model that transformers' class cannot
// express, or an `out_dir` that holds anything but an earlier export of ours (which is replaced).
Status ExportHuggingFace(const CheckpointReader& reader, const std::string& out_dir,
                         const ExportOptions& options);

}  // namespace filigree
