#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>

#include "trainer/export/sentencepiece_model.h"

namespace filigree {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kSpace = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// A model of pieces merges the pair whose joint piece scores highest; a tokenizer.json lists pairs
// by priority. So each piece gives all its divisions into two other pieces, in order of its score.
std::vector<std::string> MergesOf(const SentencePieceFile& model) {
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type == PieceType::kNormal) ids[model.pieces[id].text] = id;
  }
  using Merge = std::tuple<float, size_t, size_t>;  // -score, ids of left and right
  std::vector<Merge> merges;
  for (const auto& [text, id] : ids) {
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut)), right = ids.find(text.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      merges.emplace_back(-model.pieces[id].score, left->second, right->second);
    }
  }
  std::sort(merges.begin(), merges.end());
  std::vector<std::string> lines;
  for (const auto& [score, left, right] : merges) {
    lines.push_back(model.pieces[left].text + " " + model.pieces[right].text);
  }
  return lines;
}

// Pieces that no merge makes: found in the text before it is cut.
Json AddedTokensOf(const SentencePieceFile& model) {
  Json tokens = Json::array();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    if (piece.type == PieceType::kNormal || piece.type == PieceType::kByte) continue;
    tokens.push_back({{"id", id},
                      {"content", piece.text},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", piece.type != PieceType::kUserDefined}});
  }
  return tokens;
}

// BOS A, and BOS A BOS B for pairs.
Json TemplateOf(const std::string& bos, int64_t bos_id) {
  const auto special = [&](int type) -> Json {
    return {{"SpecialToken", {{"id", bos}, {"type_id", type}}}};
  };
  const auto sequence = [](const char* id, int type) -> Json {
    return {{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  Json token = {{"id", bos}, {"ids", Json::array({bos_id})}, {"tokens", Json::array({bos})}};
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({special(0), sequence("A", 0)})},
          {"pair", Json::array({special(0), sequence("A", 0), special(1), sequence("B", 1)})},
          {"special_tokens", {{bos, token}}}};
}

Json Replace(const char* pattern, const char* content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

bool IsExpressible(const SentencePieceFile& model) {
  const bool unused = std::any_of(model.pieces.begin(), model.pieces.end(), [](const auto& piece) {
    return piece.type == PieceType::kUnused;
  });
  return model.is_bpe && model.plain_text && model.unknown_id() >= 0 && !unused;
}

}  // namespace

std::string TokenizerJsonOf(const SentencePieceFile& model, int64_t bos_id) {
  if (!IsExpressible(model)) return "";
  // Appended directly: an insertion by key searches the ordered object from its beginning.
  Json vocabulary = Json::object();
  auto& members = vocabulary.get_ref<Json::object_t&>();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    members.emplace_back(model.pieces[id].text, id);
  }
  const Json prepend = {{"type", "Prepend"}, {"prepend", kSpace}};
  const Json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const Json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", AddedTokensOf(model)},
      {"normalizer",
       {{"type", "Sequence"}, {"normalizers", Json::array({prepend, Replace(" ", kSpace)})}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", bos_id < 0 ? Json(nullptr) : TemplateOf(model.TextOf(bos_id), bos_id)},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         Json::array(
             {Replace(kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip})}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", model.TextOf(model.unknown_id())},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", true},
        {"byte_fallback", model.byte_fallback},
        {"vocab", std::move(vocabulary)},
        {"merges", MergesOf(model)}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace filigree
