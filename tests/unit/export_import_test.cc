#include <gmock/gmock.h>

#include "tests/unit/export_testing.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/export/huggingface_config.h"
#include "trainer/export/huggingface_export.h"
#include "trainer/export/huggingface_import.h"
#include "trainer/export/inspect.h"
#include "trainer/export/open_model.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class ImportTest : public DirectoryTest {
 protected:
  void ExportTo(const std::string& name, ModelFamily family, bool tied_head,
                DType dtype = DType::kF32) {
    info_ = SmallInfo(family, tied_head, /*sparse=*/true);
    ASSERT_TRUE(WriteSmall(Path("c"), info_).ok());
    const auto reader = CheckpointReader::Open(Path("c"));
    ASSERT_TRUE(reader.ok());
    const Status status = ExportHuggingFace(**reader, Path(name), {.dtype = dtype});
    ASSERT_TRUE(status.ok()) << status.message();
  }
  // Changes hf/config.json.
  void Patch(const nlohmann::json& changes) {
    auto config = JsonOf(Path("hf/config.json"));
    config.merge_patch(changes);  // null removes
    Write("hf/config.json", config.dump());
  }
  std::string Refusal() const {
    const auto reader = OpenHuggingFace(Path("hf"));
    EXPECT_FALSE(reader.ok());
    EXPECT_EQ(reader.status().exit_code(), 2);
    return reader.status().message();
  }
  // Rewrites hf/model.safetensors with other names, dtypes or tensors.
  void Rewrite(const std::function<void(std::map<std::string, PlainTensor>*)>& change) {
    auto tensors = ReadPlainTensors(Path("hf/model.safetensors"));
    change(&tensors);
    std::vector<NamedArray> arrays;
    for (const auto& [name, tensor] : tensors) {
      DType dtype = DType::kF32;
      ASSERT_TRUE(DTypeFromName(tensor.dtype, &dtype));
      arrays.emplace_back(name, dtype, tensor.shape, tensor.bytes.data());
    }
    ASSERT_TRUE(WriteSafetensors(Path("hf/model.safetensors"), arrays).ok());
  }
  void ExpectSameValues(const CheckpointReader& reader) const {
    ASSERT_EQ(reader.info().parameters.size(), info_.parameters.size());
    for (size_t i = 0; i < info_.parameters.size(); ++i) {
      SCOPED_TRACE(info_.parameters[i].name);
      EXPECT_EQ(reader.info().parameters[i].name, info_.parameters[i].name);
      const auto values = reader.ReadDense(static_cast<int>(i));
      ASSERT_TRUE(values.ok()) << values.status().message();
      EXPECT_EQ(*values, DenseOf(info_.parameters[i]));
    }
  }

  CheckpointInfo info_;
};

struct Form {
  ModelFamily family;
  bool tied_head;
};
class RoundTripTest : public ImportTest, public ::testing::WithParamInterface<Form> {};

TEST_P(RoundTripTest, ImportOfTheF32ExportIsTheCheckpoint) {
  ExportTo("hf", GetParam().family, GetParam().tied_head);
  const Status status = ImportHuggingFace(Path("hf"), Path("imported"));
  ASSERT_TRUE(status.ok()) << status.message();
  const auto reader = CheckpointReader::Open(Path("imported"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const CheckpointInfo& info = (*reader)->info();
  EXPECT_EQ(info.step, 0);
  EXPECT_FALSE(info.has_moments);
  ModelSpec expected = info_.model;
  expected.recompute = Recompute::kNone;
  expected.gelu_derivative_bits = 0;
  EXPECT_EQ(info.model, expected);
  ExpectSameValues(**reader);
  const Parameter& embedding = info.parameters[0];
  EXPECT_EQ(embedding.padding_count, (320 - 259) * 24);
  const auto segment = (*reader)->ReadSegment(0, CheckpointArray::kMaster);
  ASSERT_TRUE(segment.ok());
  EXPECT_EQ(segment->size(), 320u * 24);
  EXPECT_EQ(segment->back(), 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Families, RoundTripTest,
                         ::testing::Values(Form{ModelFamily::kLlama, false},
                                           Form{ModelFamily::kLlama, true},
                                           Form{ModelFamily::kGpt2, false},
                                           Form{ModelFamily::kGpt2, true}));

TEST_F(ImportTest, ReadsWhatOthersWrite) {
  ExportTo("hf", ModelFamily::kGpt2, /*tied_head=*/true);
  Rewrite([](auto* tensors) {
    std::map<std::string, PlainTensor> bare;  // as the first GPT-2 files on the Hub
    for (auto& [name, tensor] : *tensors) {
      bare[name.substr(std::string("transformer.").size())] = std::move(tensor);
    }
    bare["h.0.attn.bias"] = {"U8", {1, 1, 2, 2}, "1011"};
    bare["lm_head.weight"] = bare["wte.weight"];  // a copy of the tied one
    *tensors = std::move(bare);
  });
  const auto reader = OpenHuggingFace(Path("hf"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  ExpectSameValues(**reader);
}

TEST_F(ImportTest, ReadsBothRopeStylesAndDefaults) {
  ExportTo("hf", ModelFamily::kLlama, /*tied_head=*/false);
  Patch({{"rope_theta", nullptr}, {"rope_scaling", nullptr}});
  EXPECT_EQ((*OpenHuggingFace(Path("hf")))->info().model.rope_theta, 5000);
  Patch({{"rope_theta", 7000}, {"rope_parameters", nullptr}, {"head_dim", nullptr}});
  const auto reader = OpenHuggingFace(Path("hf"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ((*reader)->info().model.rope_theta, 7000);
  EXPECT_EQ((*reader)->info().model.head_size, 6);
  Patch({{"architectures", {"LLaMAForCausalLM"}}, {"tie_word_embeddings", nullptr}});
  EXPECT_TRUE(OpenHuggingFace(Path("hf")).ok());
}

TEST_F(ImportTest, ForeignFeaturesAreRefusedByName) {
  ExportTo("hf", ModelFamily::kLlama, /*tied_head=*/false);
  const std::string good = FileText(Path("hf/config.json"));
  const auto refused = [&](const nlohmann::json& changes, const std::string& reason) {
    Write("hf/config.json", good);
    Patch(changes);
    EXPECT_THAT(Refusal(), HasSubstr(reason));
  };
  refused({{"model_type", "mistral"}}, "model_type \"mistral\"");
  refused({{"architectures", {"LlamaForSequenceClassification"}}}, "SequenceClassification");
  refused({{"hidden_act", "gelu"}}, "hidden_act \"gelu\"");
  refused({{"attention_bias", true}, {"mlp_bias", true}}, "attention_bias true, mlp_bias true");
  refused({{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}},
          "rope_scaling of type \"linear\"");
  refused({{"rope_parameters", {{"rope_type", "yarn"}}}}, "rope_parameters of type \"yarn\"");
  refused({{"quantization_config", {{"bits", 4}}}}, "quantization_config");
  refused({{"num_key_value_heads", 3}}, "4 heads over 3 key-value heads");
  refused({{"num_hidden_layers", 0}}, "a size below 1");
  refused({{"vocab_size", nullptr}}, "vocab_size");
  refused({{"vocab_size", "many"}}, "is no valid model config");
  refused({{"vocab_size", 258}}, "has shape [259, 24], but config.json asks for [258, 24]");
  Write("hf/config.json", "{");
  EXPECT_THAT(Refusal(), HasSubstr("is no valid model config"));
}

TEST_F(ImportTest, Gpt2FeaturesAreRefusedByName) {
  ExportTo("hf", ModelFamily::kGpt2, /*tied_head=*/false);
  Patch({{"activation_function", "relu"},
         {"scale_attn_by_inverse_layer_idx", true},
         {"scale_attn_weights", false}});
  EXPECT_THAT(Refusal(), HasSubstr("activation_function \"relu\", scale_attn_weights false, "
                                   "scale_attn_by_inverse_layer_idx true"));
}

TEST_F(ImportTest, EveryTensorMustBeKnownAndThere) {
  ExportTo("hf", ModelFamily::kLlama, /*tied_head=*/false);
  Rewrite([](auto* tensors) {
    (*tensors)["model.layers.0.self_attn.q_proj.bias"] = {"F32", {1}, "1234"};
  });
  EXPECT_THAT(Refusal(), HasSubstr("q_proj.bias\" has no place"));
  Rewrite([](auto* tensors) {
    tensors->erase("model.layers.0.self_attn.q_proj.bias");
    tensors->erase("model.norm.weight");
  });
  EXPECT_THAT(Refusal(), HasSubstr("\"model.norm.weight\" is missing"));
  fs::remove(Path("hf/model.safetensors"));
  EXPECT_THAT(Refusal(), HasSubstr("model.safetensors: cannot be opened"));
}

TEST_F(ImportTest, OpenModelTakesAllThree) {
  ExportTo("hf", ModelFamily::kLlama, /*tied_head=*/false, DType::kBF16);
  const std::string directory = CheckpointDirectory(Path("run"), 1200);
  ASSERT_TRUE(WriteSmall(directory, info_).ok());
  EXPECT_EQ((*OpenModel(Path("run")))->directory(), directory);
  EXPECT_EQ((*OpenModel(Path("c")))->info().step, 1200);
  const auto hf = OpenModel(Path("hf"));
  ASSERT_TRUE(hf.ok()) << hf.status().message();
  const auto values = (*hf)->ReadDense(0);
  ASSERT_TRUE(values.ok());
  EXPECT_EQ((*values)[5], static_cast<float>(BFloat16(DenseOf(info_.parameters[0])[5])));
  const auto nothing = OpenModel(directory_);
  EXPECT_EQ(nothing.status().exit_code(), 2);
  EXPECT_THAT(nothing.status().message(), HasSubstr("or a Hugging Face directory"));
}

TEST_F(ImportTest, ATokenizerThatWeDoNotReadTravelsOn) {
  ExportTo("hf", ModelFamily::kGpt2, /*tied_head=*/true);
  Write("hf/tokenizer.json", R"({"model":"foreign"})");
  Write("hf/tokenizer_config.json", R"({"tokenizer_class":"GPT2TokenizerFast"})");
  Write("hf/generation_config.json", R"({"bos_token_id":258,"eos_token_id":[257,258]})");
  ASSERT_TRUE(ImportHuggingFace(Path("hf"), Path("imported")).ok());
  const auto reader = CheckpointReader::Open(Path("imported"));
  ASSERT_TRUE(reader.ok());
  const Status status = ExportHuggingFace(**reader, Path("again"), {.dtype = DType::kF32});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(FileText(Path("again/tokenizer.json")), FileText(Path("hf/tokenizer.json")));
  EXPECT_EQ(FileText(Path("again/tokenizer_config.json")),
            FileText(Path("hf/tokenizer_config.json")));
  EXPECT_EQ(JsonOf(Path("again/config.json"))["bos_token_id"], 258);
  EXPECT_EQ(JsonOf(Path("again/config.json"))["eos_token_id"], 257);
}

TEST_F(ImportTest, InspectShowsWhatIsThere) {
  ExportTo("hf", ModelFamily::kLlama, /*tied_head=*/false);
  const std::string checkpoint = *InspectPath(Path("c"));
  EXPECT_THAT(checkpoint, HasSubstr("step 1,200, 987,654,321,012 tokens, phase 1, 3 ranks"));
  EXPECT_THAT(checkpoint, ContainsRegex("layers.0.attention.q.weight +\\[24, 24\\] +unstructured "
                                        "+576 +144 +0\\.2500\n"));
  int64_t logical = 0, nonzero = 0;
  for (const Parameter& parameter : info_.parameters) {
    logical += parameter.logical_count();
    nonzero += parameter.layout.nonzero_count();
  }
  const auto grouped = [](int64_t count) {
    return std::to_string(count / 1000) + "," + std::to_string(1000 + count % 1000).substr(1);
  };
  EXPECT_THAT(checkpoint,
              ContainsRegex("\ntotal +" + grouped(logical) + " +" + grouped(nonzero) + " +0\\."));
  EXPECT_THAT(*InspectPath(Path("hf")), HasSubstr("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_THAT(*InspectPath(Path("hf/filigree_layouts.safetensors")),
              HasSubstr("producer: filigree"));
  WriteShards("train", {7, 300, 2});
  const std::string shard = *InspectPath(Path("train_000000.bin"));
  EXPECT_THAT(shard, HasSubstr("largest id    300\nfirst tokens 7 300 2\n"));
  EXPECT_THAT(InspectPath(Path("none")).status().message(), HasSubstr("does not exist"));
}

}  // namespace
}  // namespace filigree
