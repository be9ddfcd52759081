// A SentencePiece model file, read from its protocol buffer directly: the library itself lives in a
// plugin and does not tell, and transformers needs to know.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

// The values are sentencepiece_model.proto's.
enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct SentencePieceFile {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool is_bpe = false;
  bool byte_fallback = false;
  // Text is taken as it is (no Unicode normalisation, no spaces removed), with a space before it,
  // as llama does.
  bool plain_text = false;

  // The text of a piece; empty where `id` is none.
  std::string TextOf(int64_t id) const;
  // The id of the unknown piece, or -1.
  int64_t unknown_id() const;
};

// `place` names the file in errors (InvalidInput).
StatusOr<SentencePieceFile> ReadSentencePieceFile(std::string_view bytes, const std::string& place);

// A tokenizer.json (byte-pair encoding) that encodes text as the model does, or empty where its
// format cannot express the model: not BPE, text normalised or stripped, unused pieces. The begin
// token (-1: none) is put before each text, as llama's tokenizers do. Control pieces that stand
// literally in a text become their ids, as with every Hugging Face tokenizer.
std::string TokenizerJsonOf(const SentencePieceFile& model, int64_t bos_id);

}  // namespace filigree
