#include <gmock/gmock.h>

#include <cmath>

#include "tests/unit/export_fixture.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

template <typename Map>
std::vector<std::string> KeysOf(const Map& map) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : map) keys.push_back(key);
  return keys;
}

// [out, in] -> [in, out].
template <typename T>
std::vector<T> Transpose(const std::vector<T>& values, int64_t out, int64_t in) {
  std::vector<T> transposed(values.size());
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      transposed[static_cast<size_t>(i * out + o)] = values[static_cast<size_t>(o * in + i)];
    }
  }
  return transposed;
}

// q | k | v side by side in each row of [in, 3 * out].
template <typename T>
std::vector<T> FuseColumns(const std::vector<std::vector<T>>& transposed_parts, int64_t in) {
  std::vector<T> fused;
  for (int64_t i = 0; i < in; ++i) {
    for (const auto& part : transposed_parts) {
      const auto width = static_cast<int64_t>(part.size()) / in;
      fused.insert(fused.end(), part.begin() + i * width, part.begin() + (i + 1) * width);
    }
  }
  return fused;
}

std::vector<uint8_t> Unpack(const PlainTensor& mask, size_t cells) {
  const auto bytes = mask.As<uint8_t>();
  EXPECT_EQ(bytes.size(), (cells + 7) / 8);
  std::vector<uint8_t> bits;
  for (uint8_t byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) bits.push_back(byte >> bit & 1);
  }
  for (size_t i = cells; i < bits.size(); ++i) EXPECT_EQ(bits[i], 0) << i;
  bits.resize(cells);
  return bits;
}

TEST_F(ExportTest, LlamaNamesShapesAndValues) {
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false, kF32);
  const auto tensors = ReadPlainTensors(Path("out/model.safetensors"));
  std::vector<std::string> names = {"model.embed_tokens.weight", "model.norm.weight",
                                    "lm_head.weight"};
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                             "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
                             "input_layernorm", "post_attention_layernorm"}) {
      names.push_back(std::string(layer) + name + ".weight");
    }
  }
  EXPECT_THAT(KeysOf(tensors), UnorderedElementsAreArray(names));
  const auto expect = [&](const std::string& theirs, std::vector<int64_t> shape,
                          const std::string& ours) {
    SCOPED_TRACE(theirs);
    EXPECT_EQ(tensors.at(theirs).dtype, "F32");
    EXPECT_EQ(tensors.at(theirs).shape, shape);
    EXPECT_EQ(tensors.at(theirs).As<float>(), Dense(ours));
  };
  expect("model.embed_tokens.weight", {259, 24}, "embedding.weight");
  expect("lm_head.weight", {259, 24}, "head.weight");
  expect("model.norm.weight", {24}, "final_norm.weight");
  expect("model.layers.1.input_layernorm.weight", {24}, "layers.1.attention_norm.weight");
  expect("model.layers.1.post_attention_layernorm.weight", {24}, "layers.1.mlp_norm.weight");
  expect("model.layers.1.self_attn.q_proj.weight", {24, 24}, "layers.1.attention.q.weight");
  expect("model.layers.1.self_attn.k_proj.weight", {12, 24}, "layers.1.attention.k.weight");
  expect("model.layers.0.self_attn.v_proj.weight", {12, 24}, "layers.0.attention.v.weight");
  expect("model.layers.0.self_attn.o_proj.weight", {24, 24}, "layers.0.attention.o.weight");
  expect("model.layers.0.mlp.gate_proj.weight", {40, 24}, "layers.0.mlp.gate.weight");
  expect("model.layers.0.mlp.up_proj.weight", {40, 24}, "layers.0.mlp.up.weight");
  expect("model.layers.0.mlp.down_proj.weight", {24, 40}, "layers.0.mlp.down.weight");
}

TEST_F(ExportTest, Gpt2TransposesAndFuses) {
  ExportOk(ModelFamily::kGpt2, /*tied_head=*/true, kF32);
  const auto tensors = ReadPlainTensors(Path("out/model.safetensors"));
  std::vector<std::string> names = {"transformer.wte.weight", "transformer.wpe.weight",
                                    "transformer.ln_f.weight", "transformer.ln_f.bias"};
  for (const char* layer : {"transformer.h.0.", "transformer.h.1."}) {
    for (const char* name :
         {"ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}) {
      names.push_back(std::string(layer) + name + ".weight");
      names.push_back(std::string(layer) + name + ".bias");
    }
  }
  EXPECT_THAT(KeysOf(tensors), UnorderedElementsAreArray(names));
  const auto& wte = tensors.at("transformer.wte.weight");
  EXPECT_THAT(wte.shape, ElementsAre(259, 24));
  EXPECT_EQ(wte.As<float>(), Dense("embedding.weight"));
  EXPECT_EQ(tensors.at("transformer.wpe.weight").As<float>(), Dense("position_embedding.weight"));

  const auto& c_attn = tensors.at("transformer.h.1.attn.c_attn.weight");
  EXPECT_THAT(c_attn.shape, ElementsAre(24, 72));
  std::vector<std::vector<float>> parts;
  std::vector<float> bias;
  for (const char* part : {"q", "k", "v"}) {
    const std::string name = std::string("layers.1.attention.") + part;
    parts.push_back(Transpose(Dense(name + ".weight"), 24, 24));
    const auto part_bias = Dense(name + ".bias");
    bias.insert(bias.end(), part_bias.begin(), part_bias.end());
  }
  EXPECT_EQ(c_attn.As<float>(), FuseColumns(parts, 24));
  EXPECT_THAT(tensors.at("transformer.h.1.attn.c_attn.bias").shape, ElementsAre(72));
  EXPECT_EQ(tensors.at("transformer.h.1.attn.c_attn.bias").As<float>(), bias);

  const auto& c_fc = tensors.at("transformer.h.0.mlp.c_fc.weight");
  EXPECT_THAT(c_fc.shape, ElementsAre(24, 40));
  EXPECT_EQ(c_fc.As<float>(), Transpose(Dense("layers.0.mlp.up.weight"), 40, 24));
  const auto& c_proj = tensors.at("transformer.h.0.mlp.c_proj.weight");
  EXPECT_THAT(c_proj.shape, ElementsAre(40, 24));
  EXPECT_EQ(c_proj.As<float>(), Transpose(Dense("layers.0.mlp.down.weight"), 24, 40));
  EXPECT_EQ(tensors.at("transformer.h.0.mlp.c_fc.bias").As<float>(), Dense("layers.0.mlp.up.bias"));
  EXPECT_EQ(tensors.at("transformer.h.1.ln_2.bias").As<float>(), Dense("layers.1.mlp_norm.bias"));
}

// To the nearest of the two neighbours, ties to the even one: found by comparing distances.
uint16_t NearestBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const double below = std::bit_cast<float>(bits & 0xffff0000u);
  const double above = std::bit_cast<float>((bits & 0xffff0000u) + 0x10000u);
  const double to_below = std::abs(value - below), to_above = std::abs(value - above);
  const auto low = static_cast<uint16_t>(bits >> 16);
  if (to_below != to_above) return to_below < to_above ? low : static_cast<uint16_t>(low + 1);
  return low % 2 == 0 ? low : static_cast<uint16_t>(low + 1);
}

TEST_F(ExportTest, BFloat16RoundsToNearestEven) {
  ExportOk(ModelFamily::kLlama, /*tied_head=*/true);
  const auto tensors = ReadPlainTensors(Path("out/model.safetensors"));
  EXPECT_EQ(tensors.count("lm_head.weight"), 0u);
  const PlainTensor& embedding = tensors.at("model.embed_tokens.weight");
  EXPECT_EQ(embedding.dtype, "BF16");
  std::vector<uint16_t> expected;
  for (float value : Dense("embedding.weight")) expected.push_back(NearestBFloat16(value));
  EXPECT_EQ(embedding.As<uint16_t>(), expected);
  EXPECT_EQ(JsonOf(Path("out/config.json"))["dtype"], "bfloat16");
}

TEST_F(ExportTest, LayoutsTravelInTheExportedOrientation) {
  ExportOk(ModelFamily::kGpt2, /*tied_head=*/true, kF32);
  const std::string path = Path("out/filigree_layouts.safetensors");
  const auto masks = ReadPlainTensors(path);
  EXPECT_EQ(masks.size(), 8u);  // c_attn, attn.c_proj, c_fc, mlp.c_proj of two layers
  const auto metadata = HeaderOf(path)["__metadata__"];
  const auto& fc = Find("layers.0.mlp.up.weight").layout;
  EXPECT_EQ(Unpack(masks.at("transformer.h.0.mlp.c_fc.weight.mask"), 24 * 40),
            Transpose(MaskOf(fc), 40, 24));
  const auto layout =
      nlohmann::json::parse(metadata["transformer.h.0.mlp.c_fc.weight.layout"].get<std::string>());
  EXPECT_EQ(layout["shape"], (std::vector<int>{24, 40}));
  EXPECT_NEAR(layout["density"], 1 - fc.sparsity(), 1e-12);
  EXPECT_EQ(layout["parts"][0]["kind"], "blocked");
  EXPECT_EQ(layout["parts"][0]["block_rows"], 7);
  EXPECT_EQ(layout["parts"][0]["block_cols"], 16);

  std::vector<std::vector<uint8_t>> parts;
  for (const char* part : {"q", "k", "v"}) {
    const std::string name = std::string("layers.1.attention.") + part + ".weight";
    parts.push_back(Transpose(MaskOf(Find(name).layout), 24, 24));
  }
  EXPECT_EQ(Unpack(masks.at("transformer.h.1.attn.c_attn.weight.mask"), 24 * 72),
            FuseColumns(parts, 24));
  const auto fused = nlohmann::json::parse(
      metadata["transformer.h.1.attn.c_attn.weight.layout"].get<std::string>());
  EXPECT_EQ(fused["parts"][0]["kind"], "unstructured");
  EXPECT_EQ(fused["parts"][1]["kind"], "n_m");
  EXPECT_EQ(fused["parts"][2]["kind"], "dense");
  EXPECT_EQ(fused["parts"][2]["parameter"], "layers.1.attention.v.weight");
}

// The mask that a layout implies, from its blocks and columns, against what MaskOf says.
TEST_F(ExportTest, MasksFollowTheBlocks) {
  const auto layout = SparseLayout::Blocked(3, 5, 2, 2, {0, 1, 3}, {2, 0, 1});
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(MaskOf(*layout), ElementsAre(0, 0, 0, 0, 1,  //
                                           0, 0, 0, 0, 1,  //
                                           1, 1, 1, 1, 0));
}

TEST_F(ExportTest, LlamaConfigSpeaksBothVersions) {
  ExportOk(ModelFamily::kLlama, /*tied_head=*/true, kF32);
  EXPECT_EQ(JsonOf(Path("out/config.json")), nlohmann::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259,
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "silu", "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "rope_scaling": null,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "attention_bias": false,
    "mlp_bias": false, "attention_dropout": 0.0, "initializer_range": 0.02,
    "tie_word_embeddings": true, "bos_token_id": null, "eos_token_id": null, "pad_token_id": null,
    "torch_dtype": "float32", "dtype": "float32", "use_cache": true,
    "transformers_version": "4.57.0"})"));
}

TEST_F(ExportTest, Gpt2ConfigHasEveryKey) {
  ExportOk(ModelFamily::kGpt2, /*tied_head=*/false, kF32);
  EXPECT_EQ(JsonOf(Path("out/config.json")), nlohmann::json::parse(R"({
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 259,
    "n_positions": 32, "n_ctx": 32, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 40,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "scale_attn_weights": true, "initializer_range": 0.02,
    "tie_word_embeddings": false, "bos_token_id": null, "eos_token_id": null,
    "torch_dtype": "float32", "dtype": "float32", "use_cache": true,
    "transformers_version": "4.57.0"})"));
  EXPECT_EQ(ReadPlainTensors(Path("out/model.safetensors")).at("lm_head.weight").As<float>(),
            Dense("head.weight"));
}

TEST_F(ExportTest, EveryFileSaysWhereItComesFrom) {
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false);
  for (const char* name : {"out/model.safetensors", "out/filigree_layouts.safetensors"}) {
    const auto metadata = HeaderOf(Path(name))["__metadata__"];
    EXPECT_EQ(metadata["format"], "pt");
    EXPECT_EQ(metadata["producer"], "filigree");
    EXPECT_EQ(metadata["step"], "1200");
    EXPECT_EQ(metadata["config_xxh64"], HashHex(Hash64(info_.config_text)));
  }
}

TEST_F(ExportTest, LargeModelsAreSharded) {
  constexpr int64_t kLimit = 12000;
  ExportOk(ModelFamily::kLlama, /*tied_head=*/true,
           {.dtype = DType::kF32, .max_shard_bytes = kLimit});
  const auto index = JsonOf(Path("out/model.safetensors.index.json"));
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
  ASSERT_GT(files.size(), 2u);
  EXPECT_EQ(*files.begin(), "model-00001-of-0000" + std::to_string(files.size()) + ".safetensors");
  EXPECT_FALSE(fs::exists(Path("out/model.safetensors")));
  std::map<std::string, PlainTensor> all;
  int64_t total = 0;
  for (const std::string& file : files) {
    const auto tensors = ReadPlainTensors(Path("out/" + file));
    int64_t bytes = 0;
    for (const auto& [name, tensor] : tensors) {
      EXPECT_EQ(index["weight_map"][name], file);
      bytes += static_cast<int64_t>(tensor.bytes.size());
    }
    EXPECT_TRUE(bytes <= kLimit || tensors.size() == 1) << file;
    total += bytes;
    ReadPlainTensors(Path("out/" + file), &all);
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(all.size(), 20u);
  EXPECT_EQ(all.at("model.layers.1.mlp.down_proj.weight").As<float>(),
            Dense("layers.1.mlp.down.weight"));
}

TEST_F(ExportTest, WhatTransformersCannotExpressIsRefused) {
  CheckpointInfo info = SmallInfo(ModelFamily::kGpt2, true, false);
  info.model.head_size = 8;
  info.parameters = DenseParametersOf(info.model);
  ASSERT_TRUE(WriteSmall(Path("c"), info).ok());
  EXPECT_THAT(Export(ModelFamily::kGpt2, true).message(), HasSubstr("GPT2LMHeadModel"));
  fs::remove_all(Path("c"));
  info = SmallInfo(ModelFamily::kLlama, true, false);
  info.parameters[3].name = "layers.0.attention.q.low_rank_a";
  ASSERT_TRUE(WriteSmall(Path("c"), info).ok());
  const Status status = Export(ModelFamily::kLlama, true);
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_THAT(status.message(), HasSubstr("layers.0.attention."));
  EXPECT_FALSE(fs::exists(Path("out")));
}

}  // namespace
}  // namespace filigree
