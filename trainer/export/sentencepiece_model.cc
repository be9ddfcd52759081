#include "trainer/export/sentencepiece_model.h"

#include <cstdint>

namespace filigree {
namespace {

// A message of the protocol buffer wire format, field by field.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}

  // The next field; false at the end or where the bytes are no message.
  bool Next() {
    uint64_t key = 0;
    if (rest_.empty() || !ReadVarint(&key)) return false;
    field_ = static_cast<int>(key >> 3);
    switch (key & 7) {
      case 0:
        return ReadVarint(&number_);
      case 1:
        return Take(8);
      case 2: {
        uint64_t length = 0;
        return ReadVarint(&length) && Take(length);
      }
      case 5:
        return Take(4);
      default:
        return damaged_ = true, false;
    }
  }

  int field() const { return field_; }
  uint64_t number() const { return number_; }       // of a varint field
  std::string_view bytes() const { return bytes_; }  // of any other
  bool damaged() const { return damaged_; }

 private:
  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    damaged_ = true;
    return false;
  }
  bool Take(uint64_t length) {
    damaged_ = length > rest_.size();
    if (damaged_) return false;
    bytes_ = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }

  std::string_view rest_, bytes_;
  int field_ = 0;
  uint64_t number_ = 0;
  bool damaged_ = false;
};

// Field numbers and values of sentencepiece_model.proto.
constexpr int kPieces = 1, kTrainerSpec = 2;
constexpr int kPieceText = 1, kPieceType = 3, kModelType = 3;
constexpr uint64_t kUnknownPiece = 2, kUnigram = 1, kBpe = 2;

struct Piece {
  std::string text;
  uint64_t type = 1;
};
Piece ReadPiece(std::string_view bytes) {
  Piece piece;
  for (WireReader field(bytes); field.Next();) {
    if (field.field() == kPieceText) piece.text = field.bytes();
    if (field.field() == kPieceType) piece.type = field.number();
  }
  return piece;
}

}  // namespace

StatusOr<SentencePieceSummary> SummarizeSentencePiece(std::string_view model_bytes, int bos_id,
                                                      int eos_id, const std::string& place) {
  SentencePieceSummary summary;
  uint64_t model_type = kUnigram;  // the schema's default
  int id = 0;
  WireReader model(model_bytes);
  while (model.Next()) {
    if (model.field() == kTrainerSpec) {
      for (WireReader field(model.bytes()); field.Next();) {
        if (field.field() == kModelType) model_type = field.number();
      }
    }
    if (model.field() != kPieces) continue;
    const Piece piece = ReadPiece(model.bytes());
    if (id == bos_id) summary.bos = piece.text;
    if (id == eos_id) summary.eos = piece.text;
    if (piece.type == kUnknownPiece) summary.unk = piece.text;
    ++id;
  }
  if (model.damaged() || id == 0) return InvalidInput(place + ": is no SentencePiece model");
  summary.is_bpe = model_type == kBpe;
  return summary;
}

}  // namespace filigree
