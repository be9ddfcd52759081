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

// The length of the first segment of `text`: up to a single space between two other characters,
// which no piece of a model that Joins crosses.
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
      : model_(std::move(model)), bytes_(std::move(bytes)), join_(FindJoin(*model_)) {}

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      const size_t length = join_ == Join::kNever ? text.size() : SegmentLength(text);
      model_->Encode(text.substr(0, length), &ids);
      text.remove_prefix(length);
      if (join_ == Join::kModelAddsSpace && !text.empty()) text.remove_prefix(1);
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
  // How the pieces of "a b" follow from those of its words.
  enum class Join {
    kModelAddsSpace,  // from "a" and "b": the model itself puts a space before a text, as llama's
    kKeepSpace,       // from "a" and " b"
    kNever,           // not at all: pieces run across spaces
  };

  static Join FindJoin(const SentencePieceModel& model) {
    std::vector<int32_t> whole, added, kept;
    model.Encode("a b", &whole);
    for (const char* text : {"a", "b"}) model.Encode(text, &added);
    for (const char* text : {"a", " b"}) model.Encode(text, &kept);
    return whole == added ? Join::kModelAddsSpace : whole == kept ? Join::kKeepSpace : Join::kNever;
  }

  std::unique_ptr<SentencePieceModel> model_;
  std::string bytes_;
  Join join_;
};

// The directory of the running program, where the build puts the plugin too.
std::string ProgramDirectory() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

StatusOr<const SentencePiecePlugin*> LoadPlugin() {
  // Any symbol of the runtime would do; this one is in every version.
  if (dlsym(RTLD_DEFAULT, "_ZN6google8protobuf8internal13VerifyVersionEiiPKc") != nullptr) {
    return MachineError(
        "this program exports a protobuf runtime, which libsentencepiece cannot live "
        "beside; link protobuf statically (Protobuf_USE_STATIC_LIBS)");
  }
  const std::string beside = ProgramDirectory() + "/" + kSentencePiecePluginFile;
  void* library = nullptr;
  std::string reasons;
  for (const std::string& name : {beside, std::string(kSentencePiecePluginFile)}) {
    if (library == nullptr) library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) reasons += std::string(reasons.empty() ? "" : "; ") + dlerror();
  }
  if (library == nullptr) {
    return MachineError("SentencePiece cannot be loaded: " + reasons +
                        "; keep the plugin beside the program and install libsentencepiece0");
  }
  const void* symbol = dlsym(library, kSentencePiecePluginSymbol);
  CHECK(symbol != nullptr) << kSentencePiecePluginFile << " lacks " << kSentencePiecePluginSymbol;
  return static_cast<const SentencePiecePlugin*>(symbol);
}

// The digits after `words` in `text`; empty where it does not have them.
std::string NumberAfter(std::string_view text, std::string_view words) {
  const size_t found = text.find(words);
  if (found == std::string_view::npos) return "";
  const std::string_view rest = text.substr(found + words.size());
  return std::string(rest.substr(0, rest.find_first_not_of("0123456789")));
}

// The library's error ("FILE(LINE) [EXPRESSION] SENTENCE") as the user of `prepare` can act on it.
std::string WhyNotTrained(const std::string& error) {
  if (const std::string most = NumberAfter(error, "Please set it to a value <= "); !most.empty()) {
    return "this text offers merges for at most " + most +
           " ids; ask for no more, or give more text";
  }
  if (const std::string least = NumberAfter(error, " vs "); !least.empty()) {
    return "this text needs at least " + least +
           " ids: 259 for bytes and controls, and one for each common character; ask for more";
  }
  const size_t expression_end = error.rfind("] ");
  return "SentencePiece cannot train on this text: " +
         (expression_end == std::string::npos ? error : error.substr(expression_end + 2));
}

// Loaded once and kept for the life of the process.
StatusOr<const SentencePiecePlugin*> Plugin() {
  static const auto* const plugin = new StatusOr<const SentencePiecePlugin*>(LoadPlugin());
  return *plugin;
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string model_bytes,
                                                                const std::string& place) {
  ASSIGN_OR_RETURN(const SentencePiecePlugin* plugin, Plugin());
  std::string error;
  std::unique_ptr<SentencePieceModel> model(plugin->load(model_bytes, &error));
  if (model == nullptr) return InvalidInput(place + ": not a SentencePiece model: " + error);
  if (model->bos_id() < 0 && model->eos_id() < 0) {
    return InvalidInput(place +
                        ": the model has neither bos nor eos, so nothing can delimit "
                        "documents; train it with one");
  }
  return std::unique_ptr<Tokenizer>(
      std::make_unique<SentencePieceTokenizer>(std::move(model), std::move(model_bytes)));
}

StatusOr<std::string> TrainSentencePieceModel(const std::vector<std::string>& pieces,
                                              int32_t vocab_size) {
  ASSIGN_OR_RETURN(const SentencePiecePlugin* plugin, Plugin());
  const std::vector<std::pair<std::string, std::string>> options = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab_size)},
      {"byte_fallback", "true"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"split_digits", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"add_dummy_prefix", "true"},
      {"max_sentence_length", std::to_string(kMaxTrainingPieceBytes)},
      {"num_threads", "1"},  // threads split the work, and ties go by the split
      {"minloglevel", "2"},
  };
  std::string model_bytes, error;
  if (plugin->train(options, pieces, &model_bytes, &error)) return model_bytes;
  return InvalidInput("train-sentencepiece:" + std::to_string(vocab_size) + ": " +
                      WhyNotTrained(error));
}

}  // namespace filigree
