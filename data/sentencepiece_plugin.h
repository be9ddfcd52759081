// The boundary between filigree and libfiligree_sentencepiece.so.
//
// Distributions build libsentencepiece with a private copy of an old protobuf runtime whose symbols
// it exports. In one process with another protobuf runtime in the global scope, either library
// calls into the other and the process dies. So everything that touches SentencePiece lives in a
// plugin, loaded with dlopen(RTLD_LOCAL) when a model is first needed, and filigree itself links
// protobuf statically and exports nothing. The plugin depends on no other part of filigree.
//
// Built by the same compiler, so C++ standard types may cross.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace filigree {

// A loaded model. Immutable; may be used on several threads at once.
class SentencePieceModel {
 public:
  virtual ~SentencePieceModel() = default;
  virtual int32_t size() const = 0;
  virtual int32_t bos_id() const = 0;  // -1 where there is none
  virtual int32_t eos_id() const = 0;  // -1 where there is none
  // Appends the ids of valid UTF-8 text.
  virtual void Encode(std::string_view text, std::vector<int32_t>* ids) const = 0;
  // The text of ids in [0, size()).
  virtual std::string Decode(const std::vector<int32_t>& ids) const = 0;
};

// What the plugin exports under kSentencePiecePluginSymbol.
struct SentencePiecePlugin {
  // Null, and the reason in `error`, where the bytes are no model.
  SentencePieceModel* (*load)(std::string_view model_bytes, std::string* error);
  // Trains on pieces of text with the trainer's own option names. False, and the reason, on
  // failure.
  bool (*train)(const std::vector<std::pair<std::string, std::string>>& options,
                const std::vector<std::string>& pieces, std::string* model_bytes,
                std::string* error);
};

inline constexpr const char* kSentencePiecePluginSymbol = "filigree_sentencepiece_plugin";
inline constexpr const char* kSentencePiecePluginFile = "libfiligree_sentencepiece.so";

}  // namespace filigree
