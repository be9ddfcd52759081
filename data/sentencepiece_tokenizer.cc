#include <dlfcn.h>

#include <filesystem>
#include <utility>

#include "data/sentencepiece_plugin.h"
#include "data/tokenizer.h"

namespace filigree {
namespace {

// Documents longer than this are encoded in segments, so that the encoder's working memory (about a
// hundred bytes a byte of text) does not grow with the document.
constexpr size_t kSegmentBytes = 64 << 10;

// The length of the first segment of `text`: up to a single space between two other characters. A
// piece holds a space only at its beginning, so the pieces of the whole text never cross it.
size_t SegmentLength(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
  for (size_t i = kSegmentBytes; i + 1 < text.size(); ++i) {
    if (text[i] == ' ' && !blank(text[i - 1]) && !blank(text[i + 1])) return i;
  }
  return text.size();
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model, std::string bytes)
      : model_(std::move(model)), bytes_(std::move(bytes)), adds_space_(AddsSpace(*model_)) {}

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      const size_t length = SegmentLength(text);
      model_->Encode(text.substr(0, length), &ids);
      text.remove_prefix(length);
      // The model puts back the space before the next segment.
      if (adds_space_ && !text.empty()) text.remove_prefix(1);
    }
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids) const override {
    std::string text;
    std::vector<int32_t> known;
    for (int32_t id : ids) {
      if (id >= 0 && id < model_->size()) {
        known.push_back(id);
        continue;
      }
      text += model_->Decode(known) + "\uFFFD";
      known.clear();
    }
    return text + model_->Decode(known);
  }

  int32_t vocab_size() const override { return model_->size(); }
  int32_t bos_id() const override { return model_->bos_id(); }
  int32_t eos_id() const override { return model_->eos_id(); }
  int32_t delimiter_id() const override { return bos_id() >= 0 ? bos_id() : eos_id(); }
  std::string_view name() const override { return "sentencepiece"; }
  std::string_view file_name() const override { return "tokenizer.model"; }
  const std::string& file_bytes() const override { return bytes_; }

 private:
  // Whether the model puts a space before the text (llama's add_dummy_prefix).
  static bool AddsSpace(const SentencePieceModel& model) {
    std::vector<int32_t> with, without;
    model.Encode("a", &without);
    model.Encode(" a", &with);
    return with != without ? with.size() > without.size() && !without.empty() : true;
  }

  std::unique_ptr<SentencePieceModel> model_;
  std::string bytes_;
  bool adds_space_;
};

}  // namespace
}  // namespace filigree
