#include "data/tokenizer.h"

#include <filesystem>

#include "data/file_io.h"
#include "data/manifest.h"

namespace filigree {
namespace {

constexpr int32_t kEndOfText = 256;

void AppendUtf8(uint32_t codepoint, std::string* text) {
  if (codepoint < 0x80) {
    text->push_back(static_cast<char>(codepoint));
  } else {  // below U+0800 in this file
    text->push_back(static_cast<char>(0xC0 | (codepoint >> 6)));
    text->push_back(static_cast<char>(0x80 | (codepoint & 0x3F)));
  }
}

// The Hugging Face form: byte-level BPE without merges. Its alphabet maps each printable Latin-1
// byte to itself and the others, in order, to U+0100 and up (GPT-2's table).
std::string ByteTokenizerJson() {
  std::string vocabulary;
  uint32_t unprintable = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    vocabulary += byte == 0 ? "\"" : ",\"";
    if (byte == '"' || byte == '\\') vocabulary += '\\';
    AppendUtf8(printable ? byte : 0x100 + unprintable++, &vocabulary);
    vocabulary += "\":" + std::to_string(byte);
  }
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":256,)"
         R"("content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":)"
         R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},)"
         R"("post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,)"
         R"("trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,)"
         R"("unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,)"
         R"("fuse_unk":false,"byte_fallback":false,"vocab":{)" +
         vocabulary + R"(},"merges":[]}})" + "\n";
}

class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) {
      if (id >= 0 && id < kEndOfText) {
        text.push_back(static_cast<char>(id));
      } else if (id != kEndOfText) {
        text += "\uFFFD";
      }
    }
    return text;
  }

  int32_t vocab_size() const override { return kEndOfText + 1; }
  int32_t bos_id() const override { return kEndOfText; }
  int32_t eos_id() const override { return kEndOfText; }
  int32_t delimiter_id() const override { return kEndOfText; }
  std::string_view name() const override { return "byte"; }
  std::string_view file_name() const override { return "tokenizer.json"; }
  const std::string& file_bytes() const override { return bytes_; }

 private:
  std::string bytes_ = ByteTokenizerJson();
};

StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFile(const std::string& path) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
  if (!path.ends_with(".json")) return MakeSentencePieceTokenizer(std::move(bytes), path);
  std::unique_ptr<Tokenizer> tokenizer = MakeByteTokenizer();
  if (bytes == tokenizer->file_bytes()) return tokenizer;
  return InvalidInput(path +
                      ": of tokenizer.json files only Filigree's byte tokenizer is read; use "
                      "a SentencePiece tokenizer.model");
}

}  // namespace

std::string Tokenizer::hash() const { return HashHex(Hash64(file_bytes())); }

std::unique_ptr<Tokenizer> MakeByteTokenizer() { return std::make_unique<ByteTokenizer>(); }

StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(directory + "/" + kManifestName, error)) {
    ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(directory));
    const std::string path = directory + "/" + manifest.tokenizer.file;
    ASSIGN_OR_RETURN(auto tokenizer, LoadTokenizerFile(path));
    if (tokenizer->hash() == manifest.tokenizer.hash) return tokenizer;
    return InvalidInput(path + ": is not the tokenizer that " + kManifestName + " names (hash " +
                        tokenizer->hash() + ", expected " + manifest.tokenizer.hash +
                        "); prepare the data again");
  }
  for (const char* file : {"tokenizer.model", "tokenizer.json"}) {
    const std::string path = directory + "/" + file;
    if (fs::exists(path, error)) return LoadTokenizerFile(path);
  }
  return InvalidInput(directory +
                      ": holds no tokenizer (manifest.json, tokenizer.model or tokenizer.json)");
}

}  // namespace filigree
