#include "trainer/export/sentencepiece_model.h"

#include <cstdint>
#include <cstring>

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
  uint64_t number() const { return number_; }        // of a varint field
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

// Field numbers of sentencepiece_model.proto.
constexpr int kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3;
constexpr int kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr int kModelType = 3, kWhitespaceAsSuffix = 24, kByteFallback = 35;
constexpr int kCharsMap = 2, kAddDummyPrefix = 3, kRemoveExtraWhitespaces = 4, kEscapeSpaces = 5;
constexpr uint64_t kBpe = 2;

SentencePieceFile::Piece ReadPiece(std::string_view bytes) {
  SentencePieceFile::Piece piece;
  for (WireReader field(bytes); field.Next();) {
    if (field.field() == kPieceText) piece.text = field.bytes();
    if (field.field() == kPieceType) piece.type = static_cast<PieceType>(field.number());
    if (field.field() == kPieceScore && field.bytes().size() == sizeof(float)) {
      std::memcpy(&piece.score, field.bytes().data(), sizeof(float));
    }
  }
  return piece;
}

// Whether text reaches the model unchanged but for a space before it. Absent fields have the
// schema's defaults.
bool IsPlain(std::string_view normalizer_spec) {
  bool charsmap = false, dummy_prefix = true, removes_spaces = true, escapes_spaces = true;
  for (WireReader field(normalizer_spec); field.Next();) {
    if (field.field() == kCharsMap) charsmap = !field.bytes().empty();
    if (field.field() == kAddDummyPrefix) dummy_prefix = field.number() != 0;
    if (field.field() == kRemoveExtraWhitespaces) removes_spaces = field.number() != 0;
    if (field.field() == kEscapeSpaces) escapes_spaces = field.number() != 0;
  }
  return !charsmap && dummy_prefix && !removes_spaces && escapes_spaces;
}

}  // namespace

std::string SentencePieceFile::TextOf(int64_t id) const {
  return id < 0 || id >= static_cast<int64_t>(pieces.size()) ? ""
                                                             : pieces[static_cast<size_t>(id)].text;
}

int64_t SentencePieceFile::unknown_id() const {
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].type == PieceType::kUnknown) return static_cast<int64_t>(id);
  }
  return -1;
}

StatusOr<SentencePieceFile> ReadSentencePieceFile(std::string_view bytes,
                                                  const std::string& place) {
  SentencePieceFile file;
  bool space_as_suffix = false;
  WireReader model(bytes);
  while (model.Next()) {
    if (model.field() == kPieces) file.pieces.push_back(ReadPiece(model.bytes()));
    if (model.field() == kNormalizerSpec) file.plain_text = IsPlain(model.bytes());
    if (model.field() != kTrainerSpec) continue;
    for (WireReader field(model.bytes()); field.Next();) {
      if (field.field() == kModelType) file.is_bpe = field.number() == kBpe;
      if (field.field() == kByteFallback) file.byte_fallback = field.number() != 0;
      if (field.field() == kWhitespaceAsSuffix) space_as_suffix = field.number() != 0;
    }
  }
  file.plain_text = file.plain_text && !space_as_suffix;
  if (!model.damaged() && !file.pieces.empty()) return file;
  return InvalidInput(place + ": is no SentencePiece model");
}

}  // namespace filigree
