// Text to token ids and back.
//
//   byte              ids 0..255 are bytes, 256 is the end of text: any text, losslessly.
//   sentencepiece     a SentencePiece model (llama's, T5's, one trained by `prepare`).
//
// A tokenizer is defined by one file, which `prepare` writes beside the shards and exporters copy:
// tokenizer.model (SentencePiece's own form) or tokenizer.json (the byte tokenizer in the Hugging
// Face form, which transformers loads).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

// Immutable; Encode and Decode may run on several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of UTF-8 text, without delimiters.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
  // The text of ids. Delimiters and control ids give nothing; an id beyond the vocabulary (a
  // model's padded rows) gives U+FFFD.
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;

  virtual int32_t vocab_size() const = 0;
  // -1 where the tokenizer has none.
  virtual int32_t bos_id() const = 0;
  virtual int32_t eos_id() const = 0;
  // Prepended to every document: bos for SentencePiece (eos where it has no bos, as T5), end of
  // text for bytes. Generation begins with it and stops at it.
  virtual int32_t delimiter_id() const = 0;

  // "byte" or "sentencepiece".
  virtual std::string_view name() const = 0;
  // The file that defines it: its name, and its bytes.
  virtual std::string_view file_name() const = 0;
  virtual const std::string& file_bytes() const = 0;
  // XXH64 of file_bytes, 16 hexadecimal digits.
  std::string hash() const;
};

std::unique_ptr<Tokenizer> MakeByteTokenizer();

// From the bytes of a SentencePiece model; `place` names them in errors (InvalidInput).
StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string model_bytes,
                                                                const std::string& place);

// Trains a SentencePiece BPE model of exactly `vocab_size` ids on pieces of text: byte fallback,
// ids unk 0, bos 1, eos 2, digits apart, no normalisation (newlines, tabs and runs of spaces
// survive), a space before the text as llama has it. Deterministic. Each piece must be at most
// kMaxTrainingPieceBytes; a few megabytes in all take seconds.
// InvalidInput: the text has too little in it for vocab_size, or vocab_size is too small.
inline constexpr int64_t kMaxTrainingPieceBytes = 4096;
StatusOr<std::string> TrainSentencePieceModel(const std::vector<std::string>& pieces,
                                              int32_t vocab_size);

// The tokenizer of a prepared data directory or of an exported checkpoint: its tokenizer.model or
// tokenizer.json, checked against the hash in manifest.json where there is one.
StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory);

}  // namespace filigree
