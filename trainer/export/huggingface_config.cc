#include "trainer/export/huggingface_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/math.h"

namespace filigree {
namespace {

using Json = nlohmann::ordered_json;

// The version whose configs these are; newer ones read them too.
constexpr const char* kTransformersVersion = "4.57.0";
constexpr int64_t kVocabularyPadding = 64;

Json IdOrNull(int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

Json LlamaConfig(const ModelSpec& model) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", model.vocab_size},
          {"hidden_size", model.width},
          {"intermediate_size", model.feed_forward},
          {"num_hidden_layers", model.layers},
          {"num_attention_heads", model.heads},
          {"num_key_value_heads", model.kv_heads},
          {"head_dim", model.head_size},
          {"hidden_act", model.gate_activation == GateActivation::kSilu ? "silu" : "linear"},
          {"max_position_embeddings", model.max_positions},
          // Of a norm over what is left of a pruned stem: huggingface_export.cc, GainFactor.
          {"rms_norm_eps", model.norm_epsilon * (static_cast<double>(model.norm_divisor()) /
                                                 static_cast<double>(model.width))},
          {"rope_theta", model.rope_theta},
          {"rope_scaling", nullptr},
          {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", model.rope_theta}}},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"attention_dropout", 0.0},
          {"pad_token_id", nullptr}};
}

Json Gpt2Config(const ModelSpec& model) {
  const bool usual_width = model.feed_forward == 4 * model.width;
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"vocab_size", model.vocab_size},
          {"n_positions", model.max_positions},
          {"n_ctx", model.max_positions},  // gone from transformers; llama.cpp's converter reads it
          {"n_embd", model.width},
          {"n_layer", model.layers},
          {"n_head", model.heads},
          {"n_inner", usual_width ? Json(nullptr) : Json(model.feed_forward)},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", model.norm_epsilon},
          {"resid_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"attn_pdrop", 0.0},
          {"scale_attn_weights", true}};
}

// Collects what a config asks for and we lack, so that the user hears of all of it at once.
class Refusals {
 public:
  // `key` may be absent, null, or one of `accepted`.
  void Expect(const Json& json, const char* key, const std::vector<Json>& accepted) {
    if (!json.contains(key) || json[key].is_null()) return;
    const auto& value = json[key];
    if (std::find(accepted.begin(), accepted.end(), value) != accepted.end()) return;
    Add(std::string(key) + " " + value.dump());
  }
  void Add(const std::string& what) { list_ += (list_.empty() ? "" : ", ") + what; }
  Status ToStatus(const std::string& place) const {
    if (list_.empty()) return OkStatus();
    return InvalidInput(place + ": asks for what Filigree's models do not have: " + list_);
  }

 private:
  std::string list_;
};

template <typename T>
T ValueOr(const Json& json, const char* key, T fallback) {
  return json.contains(key) && !json[key].is_null() ? json[key].get<T>() : fallback;
}

// Version 5 keeps rope_theta and the scaling in rope_parameters, version 4 beside one another.
void ReadRope(const Json& json, ModelSpec* model, Refusals* refusals) {
  model->rope_theta = ValueOr(json, "rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!json.contains(key) || json[key].is_null()) continue;
    const Json& rope = json[key];
    const auto type = ValueOr(rope, "rope_type", ValueOr(rope, "type", std::string("default")));
    if (type != "default") refusals->Add(std::string(key) + " of type \"" + type + "\"");
    if (ValueOr(rope, "partial_rotary_factor", 1.0) != 1.0) refusals->Add("partial_rotary_factor");
    model->rope_theta = ValueOr(rope, "rope_theta", model->rope_theta);
  }
  refusals->Expect(json, "partial_rotary_factor", {1.0});
}

ModelSpec ReadLlama(const Json& json, Refusals* refusals) {
  refusals->Expect(json, "hidden_act", {"silu", "swish", "linear"});
  refusals->Expect(json, "attention_bias", {false});
  refusals->Expect(json, "mlp_bias", {false});
  ModelSpec model;
  model.family = ModelFamily::kLlama;
  model.vocab_size = json.at("vocab_size").get<int64_t>();
  model.width = json.at("hidden_size").get<int64_t>();
  model.feed_forward = json.at("intermediate_size").get<int64_t>();
  model.layers = json.at("num_hidden_layers").get<int64_t>();
  model.heads = json.at("num_attention_heads").get<int64_t>();
  model.kv_heads = ValueOr(json, "num_key_value_heads", model.heads);
  model.head_size = ValueOr(json, "head_dim", model.width / std::max<int64_t>(model.heads, 1));
  model.max_positions = ValueOr<int64_t>(json, "max_position_embeddings", 2048);
  model.norm_epsilon = ValueOr(json, "rms_norm_eps", 1e-6);
  model.tied_head = ValueOr(json, "tie_word_embeddings", false);
  if (ValueOr<std::string>(json, "hidden_act", "silu") == "linear") {
    model.gate_activation = GateActivation::kIdentity;
  }
  ReadRope(json, &model, refusals);
  return model;
}

ModelSpec ReadGpt2(const Json& json, Refusals* refusals) {
  refusals->Expect(json, "activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  refusals->Expect(json, "scale_attn_weights", {true});
  refusals->Expect(json, "scale_attn_by_inverse_layer_idx", {false});
  refusals->Expect(json, "add_cross_attention", {false});
  ModelSpec model;
  model.family = ModelFamily::kGpt2;
  model.vocab_size = json.at("vocab_size").get<int64_t>();
  model.width = json.at("n_embd").get<int64_t>();
  model.feed_forward = ValueOr(json, "n_inner", 4 * model.width);
  model.layers = json.at("n_layer").get<int64_t>();
  model.heads = model.kv_heads = json.at("n_head").get<int64_t>();
  model.head_size = model.width / std::max<int64_t>(model.heads, 1);
  model.max_positions = ValueOr<int64_t>(json, "n_positions", 1024);
  model.norm_epsilon = ValueOr(json, "layer_norm_epsilon", 1e-5);
  model.tied_head = ValueOr(json, "tie_word_embeddings", true);
  return model;
}

void CheckSizes(const ModelSpec& model, Refusals* refusals) {
  const int64_t least =
      std::min({model.vocab_size, model.width, model.feed_forward, model.layers, model.heads,
                model.kv_heads, model.head_size, model.max_positions});
  if (least < 1) refusals->Add("a size below 1");
  if (model.kv_heads > 0 && model.heads % model.kv_heads != 0) {
    refusals->Add(std::to_string(model.heads) + " heads over " + std::to_string(model.kv_heads) +
                  " key-value heads");
  }
  if (model.family == ModelFamily::kGpt2 && model.heads * model.head_size != model.width) {
    refusals->Add("a width that the heads do not divide");
  }
  if (model.head_size % 2 != 0 && model.family == ModelFamily::kLlama) {
    refusals->Add("an odd head size");
  }
}

}  // namespace

Status CheckExpressible(const ModelSpec& model) {
  if (!model.layer_shapes.empty()) {
    return InvalidInput(
        "a model whose layers have different numbers of heads or feed-forward channels cannot be "
        "exported: transformers' classes have one size for all; let the ramp end with "
        "pruning { even_layers: true }");
  }
  if (model.family == ModelFamily::kLlama) {
    if (model.width % model.heads == 0) return OkStatus();
    return InvalidInput("a llama of width " + std::to_string(model.width) + " with " +
                        std::to_string(model.heads) +
                        " heads cannot be exported: transformers loads only widths that are a "
                        "multiple of the heads");
  }
  if (model.heads * model.head_size == model.width && model.kv_heads == model.heads) {
    return OkStatus();
  }
  return InvalidInput(
      "a GPT-2 whose heads do not make up its width, or with fewer key-value heads, cannot be "
      "exported: transformers' GPT2LMHeadModel has no such form");
}

std::string HfConfigText(const ModelSpec& model, DType dtype, SpecialTokens tokens) {
  Json json = model.family == ModelFamily::kLlama ? LlamaConfig(model) : Gpt2Config(model);
  const char* dtype_name = dtype == DType::kBF16 ? "bfloat16" : "float32";
  json["initializer_range"] = model.init_std;
  json["tie_word_embeddings"] = model.tied_head;
  json["bos_token_id"] = IdOrNull(tokens.bos);
  json["eos_token_id"] = IdOrNull(tokens.eos);
  json["torch_dtype"] = dtype_name;
  json["dtype"] = dtype_name;
  json["use_cache"] = true;
  json["transformers_version"] = kTransformersVersion;
  return json.dump(2) + "\n";
}

std::string HfGenerationConfigText(SpecialTokens tokens) {
  Json json = Json::object();
  if (tokens.bos >= 0) json["bos_token_id"] = tokens.bos;
  if (tokens.eos >= 0) json["eos_token_id"] = tokens.eos;
  json["transformers_version"] = kTransformersVersion;
  return json.dump(2) + "\n";
}

StatusOr<ModelSpec> ParseHfConfig(std::string_view text, const std::string& place) {
  try {
    const Json json = Json::parse(text);
    const auto type = json.at("model_type").get<std::string>();
    Refusals refusals;
    refusals.Expect(json, "model_type", {"llama", "gpt2"});
    // "LLaMA..." is how GaLore's and SLTrain's trainers spell it.
    refusals.Expect(json, "architectures",
                    {Json::array({"LlamaForCausalLM"}), Json::array({"LLaMAForCausalLM"}),
                     Json::array({"GPT2LMHeadModel"})});
    refusals.Expect(json, "quantization_config", {});
    RETURN_IF_ERROR(refusals.ToStatus(place));
    ModelSpec model = type == "llama" ? ReadLlama(json, &refusals) : ReadGpt2(json, &refusals);
    CheckSizes(model, &refusals);
    RETURN_IF_ERROR(refusals.ToStatus(place));
    model.init_std = ValueOr(json, "initializer_range", 0.02);
    model.padded_vocab_size = AlignUp(model.vocab_size, kVocabularyPadding);
    return model;
  } catch (const Json::exception& error) {
    return InvalidInput(place + ": is no valid model config: " + error.what());
  }
}

StatusOr<SpecialTokens> ParseSpecialTokens(std::string_view text, const std::string& place) {
  try {
    const Json json = Json::parse(text);
    const auto read = [&](const char* key) {
      if (json.contains(key) && json[key].is_array() && !json[key].empty()) {
        return json[key][0].get<int64_t>();
      }
      return ValueOr<int64_t>(json, key, -1);
    };
    return SpecialTokens{.bos = read("bos_token_id"), .eos = read("eos_token_id")};
  } catch (const Json::exception& error) {
    return InvalidInput(place + ": " + error.what());
  }
}

std::string HfTokenizerConfigText(const TokenizerConfig& config) {
  Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
               {"model_max_length", config.max_length},
               {"clean_up_tokenization_spaces", false}};
  if (!config.bos.empty()) json["bos_token"] = config.bos;
  if (!config.eos.empty()) json["eos_token"] = config.eos;
  if (!config.unk.empty()) json["unk_token"] = config.unk;
  return json.dump(2) + "\n";
}

std::string AddedTokenContent(std::string_view tokenizer_json, int64_t id) {
  const Json json = Json::parse(tokenizer_json, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("added_tokens")) return "";
  for (const Json& token : json["added_tokens"]) {
    if (token.value("id", int64_t{-1}) == id) return token.value("content", "");
  }
  return "";
}

}  // namespace filigree
