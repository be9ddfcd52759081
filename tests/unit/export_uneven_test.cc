// Pruned models leave as ordinary ones: what cannot is refused, padding and folding change no
// logit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/sparse/random_layout.h"
#include "tests/unit/export_testing.h"
#include "tests/unit/reference_decoder.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/export/export_form.h"
#include "trainer/export/huggingface_export.h"
#include "trainer/export/huggingface_import.h"
#include "trainer/export/open_model.h"
#include "trainer/export/sltrain_checkpoint.h"
#include "trainer/inference.h"
#include "trainer/read_floats.h"

namespace filigree {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSeqLen = 11;

// 40 of once 64 stem channels are left, layers lost heads and feed-forward channels.
ModelSpec Pruned(ModelFamily family, std::vector<LayerShape> shapes) {
  const bool llama = family == ModelFamily::kLlama;
  ModelSpec model = {.family = family,
                     .layers = static_cast<int64_t>(shapes.size()),
                     .width = 40,
                     .head_size = 8,
                     .vocab_size = 61,
                     .padded_vocab_size = 64,
                     .max_positions = 16,
                     .tied_head = !llama,
                     .norm_epsilon = 0.05};  // large, so that a wrong one shows
  for (const LayerShape& shape : shapes) {
    model.heads = std::max(model.heads, shape.heads);
    model.kv_heads = std::max(model.kv_heads, shape.kv_heads);
    model.feed_forward = std::max(model.feed_forward, shape.feed_forward);
  }
  model.norm_width = llama ? 64 : 0;
  model.layer_shapes = std::move(shapes);
  return model;
}

class UnevenExportTest : public DirectoryTest {
 protected:
  // A checkpoint of the model with random values; masked cells of layer 0's q where asked for.
  void WriteModel(const ModelSpec& model, bool sparse = false) {
    CheckpointInfo info;
    info.model = model;
    info.has_moments = false;
    info.parameters = DenseParametersOf(model);
    if (sparse) {
      Parameter& q =
          info.parameters[FindWeightParts(info.parameters, "layers.0.attention.q.weight").weight];
      q.layout = RandomUnstructured(q.shape[0], q.shape[1], 0.5, 7, q.name);
    }
    const auto writer = CheckpointWriter::Begin(Path("c"), info, "");
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (size_t i = 0; i < info.parameters.size(); ++i) {
      const Parameter& parameter = info.parameters[i];
      std::vector<float> segment(parameter.segment_count(), 0.0f);
      const auto cells = parameter.layout.LogicalIndices();
      const float mean = parameter.name.ends_with("norm.weight") ? 1.0f : 0.0f;
      for (size_t slot = 0; slot < cells.size(); ++slot) {
        if (cells[slot] < 0) continue;
        const double draw = RandomNormal(3, RngStream("test", parameter.name), cells[slot]);
        segment[slot] = mean + 0.3f * static_cast<float>(draw);
      }
      ASSERT_TRUE((*writer)->Add(static_cast<int>(i), CheckpointArray::kMaster, segment).ok());
    }
    ASSERT_TRUE((*writer)->Commit().ok());
  }

  Status Export(bool padded) {
    const auto reader = CheckpointReader::Open(Path("c"));
    RETURN_IF_ERROR(reader.status());
    return ExportHuggingFace(**reader, Path("hf"), {.dtype = DType::kF32, .padded = padded});
  }

  static std::vector<int32_t> Tokens() {
    std::vector<int32_t> tokens(kSeqLen);
    for (int64_t t = 0; t < kSeqLen; ++t) tokens[t] = static_cast<int32_t>(t * 17 % 61);
    return tokens;
  }

  // The checkpoint's model by its definition.
  std::vector<std::vector<double>> ReferenceLogits() {
    const auto reader = CheckpointReader::Open(Path("c"));
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    const CheckpointInfo& info = (*reader)->info();
    std::map<std::string, std::vector<double>> weights;
    for (size_t i = 0; i < info.parameters.size(); ++i) {
      const auto dense = (*reader)->ReadDense(static_cast<int>(i));
      weights[info.parameters[i].name].assign(dense->begin(), dense->end());
    }
    return ReferenceDecoder(info.model, std::move(weights)).Logits(Tokens());
  }

  // The exported directory's, as an ordinary model.
  std::vector<float> ExportedLogits() {
    const auto reader = OpenModel(Path("hf"));
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    EXPECT_TRUE((*reader)->info().model.layer_shapes.empty());
    const auto loaded = InferenceModel::Load(**reader, 1, kSeqLen, backend_, *stream_);
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    std::vector<int32_t> tokens = Tokens(), targets(kSeqLen, -1);
    const MicroBatch batch = {.tokens = ConstTensorView(tokens.data(), DType::kI32, {kSeqLen}),
                              .targets = ConstTensorView(targets.data(), DType::kI32, {kSeqLen}),
                              .seq_len = kSeqLen};
    return ReadFloats(device_, (*loaded)->model().Logits(batch, *stream_), *stream_);
  }

  void ExpectSameLogits() {
    const auto expected = ReferenceLogits();
    const std::vector<float> found = ExportedLogits();
    ASSERT_EQ(found.size(), expected.size() * expected[0].size());
    double largest = 0;
    for (const auto& row : expected) {
      for (double value : row) largest = std::max(largest, std::abs(value));
    }
    EXPECT_GT(largest, 0.5);
    for (size_t i = 0; i < found.size(); ++i) {
      const size_t vocab = expected[0].size();
      ASSERT_NEAR(found[i], expected[i / vocab][i % vocab], 5e-6 * largest) << "logit " << i;
    }
  }

  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

TEST_F(UnevenExportTest, UnevenLayersAreRefusedOrPadded) {
  WriteModel(Pruned(ModelFamily::kLlama, {{4, 2, 24}, {2, 1, 40}, {4, 2, 16}}), /*sparse=*/true);
  const Status refused = Export(/*padded=*/false);
  EXPECT_EQ(refused.exit_code(), 2);
  EXPECT_THAT(refused.message(), HasSubstr("layer 1 has 2 heads, 1 key-value heads and 40"));
  EXPECT_THAT(refused.message(), HasSubstr("--padded"));
  EXPECT_FALSE(std::filesystem::exists(Path("hf")));

  const Status exported = Export(/*padded=*/true);
  ASSERT_TRUE(exported.ok()) << exported.message();
  const auto config = JsonOf(Path("hf") + "/config.json");
  EXPECT_EQ(config["hidden_size"], 40);
  EXPECT_EQ(config["num_attention_heads"], 4);
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["head_dim"], 8);
  EXPECT_EQ(config["intermediate_size"], 40);
  EXPECT_NEAR(config["rms_norm_eps"].get<double>(), 0.05 * 64 / 40, 1e-12);
  ExpectSameLogits();
}

// What was filled up is marked as not stored, so that fine-tuning can leave it zero.
TEST_F(UnevenExportTest, PaddingIsMasked) {
  WriteModel(Pruned(ModelFamily::kLlama, {{4, 2, 24}, {2, 1, 40}}));
  ASSERT_TRUE(Export(/*padded=*/true).ok());
  const auto layouts = ReadPlainTensors(Path("hf") + "/filigree_layouts.safetensors");
  const auto tensors = ReadPlainTensors(Path("hf") + "/model.safetensors");
  const auto stored = [&](const std::string& name) {
    const auto bits = layouts.at(name + ".mask").As<uint8_t>();
    const auto values = tensors.at(name).As<float>();
    int64_t count = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const bool bit = bits[i / 8] >> (i % 8) & 1;
      EXPECT_EQ(bit, values[i] != 0) << name << " cell " << i;
      count += bit;
    }
    return count;
  };
  EXPECT_EQ(stored("model.layers.1.self_attn.q_proj.weight"), 2 * 8 * 40);
  EXPECT_EQ(stored("model.layers.1.self_attn.o_proj.weight"), 2 * 8 * 40);
  EXPECT_EQ(stored("model.layers.0.mlp.down_proj.weight"), 24 * 40);
  EXPECT_EQ(layouts.count("model.layers.0.self_attn.q_proj.weight.mask"), 0u);
}

TEST_F(UnevenExportTest, ASmallerModelOfOneSizeIsOrdinary) {
  WriteModel(Pruned(ModelFamily::kLlama, {{4, 2, 24}, {4, 2, 24}}));
  ASSERT_TRUE(Export(/*padded=*/false).ok());
  EXPECT_EQ(JsonOf(Path("hf") + "/config.json")["intermediate_size"], 24);
  ExpectSameLogits();
}

TEST_F(UnevenExportTest, HeadsThatDoNotDivideTheWidth) {
  WriteModel(Pruned(ModelFamily::kLlama, {{3, 3, 24}, {3, 3, 24}}));
  const Status refused = Export(/*padded=*/false);
  EXPECT_THAT(refused.message(), HasSubstr("multiple of the heads; give --padded"));
  ASSERT_TRUE(Export(/*padded=*/true).ok());
  EXPECT_EQ(JsonOf(Path("hf") + "/config.json")["num_attention_heads"], 4);
  ExpectSameLogits();
}

TEST_F(UnevenExportTest, GroupsThatDifferHaveNoForm) {
  WriteModel(Pruned(ModelFamily::kLlama, {{4, 2, 24}, {3, 1, 24}}));
  for (bool padded : {false, true}) EXPECT_EQ(Export(padded).exit_code(), 2);
  EXPECT_THAT(Export(true).message(), HasSubstr("queries a key-value head"));
}

TEST_F(UnevenExportTest, Gpt2PadsBackToHeadsThatMakeUpItsWidth) {
  WriteModel(Pruned(ModelFamily::kGpt2, {{4, 4, 24}, {3, 3, 40}}));
  EXPECT_THAT(Export(/*padded=*/false).message(), HasSubstr("layer 1 has 3 heads"));
  const Status exported = Export(/*padded=*/true);
  ASSERT_TRUE(exported.ok()) << exported.message();
  const auto config = JsonOf(Path("hf") + "/config.json");
  EXPECT_EQ(config["n_head"], 5);
  EXPECT_EQ(config["n_inner"], 40);
  ExpectSameLogits();
}

TEST_F(UnevenExportTest, SltrainHasNoFormForIt) {
  WriteModel(Pruned(ModelFamily::kLlama, {{4, 2, 24}, {2, 1, 40}}));
  const auto reader = CheckpointReader::Open(Path("c"));
  EXPECT_THAT(ExportSltrain(**reader, Path("s"), DType::kF32).message(), HasSubstr("pruned"));
}

// The identity behind the fold, for a row of channels of which the last ones went.
TEST(ExportFormTest, TheDivisorFoldsIntoGainAndEpsilon) {
  ModelSpec model = Pruned(ModelFamily::kLlama, {{4, 2, 24}});
  const auto form = FormOf(model, false);
  ASSERT_TRUE(form.ok()) << form.status().message();
  double squares = 0;
  std::vector<double> x;
  for (int i = 0; i < 40; ++i) {
    x.push_back(RandomNormal(1, 2, i));
    squares += x.back() * x.back();
  }
  for (double value : x) {
    const double before = value / std::sqrt(squares / 64 + model.norm_epsilon);
    const double after =
        value * form->gain_factor / std::sqrt(squares / 40 + form->model.norm_epsilon);
    EXPECT_NEAR(after, before, 1e-14);
  }
}

}  // namespace
}  // namespace filigree
