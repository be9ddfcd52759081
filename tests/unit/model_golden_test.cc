// Both families against values computed independently in NumPy (tests/parity/make_golden.py):
// activations after every layer, logits, losses, and the gradient of every parameter.
#include <algorithm>
#include <cmath>
#include <span>

#include "tests/unit/model_testing.h"
#include "trainer/checkpoint/safetensors.h"

namespace filigree {
namespace {

class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(SafetensorsFile::Open(std::string(FILIGREE_GOLDEN_DIR) + "/" + name + ".safetensors")
                  .value()) {}

  ModelSpec spec() const {
    ModelSpec spec;
    spec.family = Integer("family") == 0 ? ModelFamily::kLlama : ModelFamily::kGpt2;
    spec.layers = Integer("layers");
    spec.width = Integer("width");
    spec.heads = Integer("heads");
    spec.kv_heads = Integer("kv_heads");
    spec.head_size = Integer("head_size");
    spec.feed_forward = Integer("feed_forward");
    spec.vocab_size = Integer("vocab_size");
    spec.padded_vocab_size = spec.vocab_size + 3;
    spec.max_positions = Integer("max_positions");
    spec.tied_head = Integer("tied_head") != 0;
    spec.norm_epsilon = std::stod(file_.metadata().at("norm_epsilon"));
    if (spec.family == ModelFamily::kLlama) {
      spec.rope_theta = std::stod(file_.metadata().at("rope_theta"));
    }
    return spec;
  }
  TestBatch batch() const {
    TestBatch batch;
    batch.tokens = ReadElements<int32_t>(*file_.Find("tokens")).value();
    batch.targets = ReadElements<int32_t>(*file_.Find("targets")).value();
    batch.seq_len = file_.Find("tokens")->shape[1];
    return batch;
  }
  std::vector<float> Floats(const std::string& name) const {
    const TensorEntry* tensor = file_.Find(name);
    CHECK(tensor != nullptr) << name << " is missing from " << file_.path();
    return ReadFloats(*tensor).value();
  }
  // The values of every parameter that the file has.
  void Load(TestModel& tested) const {
    for (size_t i = 0; i < tested.parameters().size(); ++i) {
      const std::string name = "value." + tested.parameters()[i].name;
      if (!file_.Find(name)) continue;
      const std::vector<float> values = Floats(name);
      CHECK_EQ(static_cast<int64_t>(values.size()), tested.parameters()[i].logical_count());
      std::copy(values.begin(), values.end(), tested.values(static_cast<int>(i)));
    }
    tested.model().ValuesChanged();
  }
  size_t CountGradients() const {
    size_t count = 0;
    for (const TensorEntry& tensor : file_.tensors()) count += tensor.name.starts_with("grad.");
    return count;
  }

 private:
  int64_t Integer(const std::string& key) const { return std::stoll(file_.metadata().at(key)); }

  SafetensorsFile file_;
};

// The file holds fp32, the model computes in double precision.
void ExpectSame(std::span<const double> found, std::span<const float> golden,
                const std::string& what) {
  ASSERT_EQ(found.size(), golden.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], golden[i], 1e-9 + 1e-7 * std::abs(golden[i])) << what << "[" << i << "]";
  }
}

// Logits of all sequences of the batch.
std::vector<double> Logits(TestModel& tested, const TestBatch& batch) {
  std::vector<double> all;
  for (int64_t begin = 0; begin < batch.count(); begin += batch.seq_len) {
    const ConstTensorView logits =
        tested.model().Logits({.tokens = batch.view().tokens.Range(begin, batch.seq_len),
                               .targets = {},
                               .seq_len = batch.seq_len},
                              tested.stream());
    for (int64_t row = 0; row < logits.rows(); ++row) {
      const double* data = logits.Rows(row, 1).As<double>();
      all.insert(all.end(), data, data + logits.cols());
    }
  }
  return all;
}

class GoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  Golden golden_{GetParam()};
  ModelSpec spec_ = golden_.spec();
  TestBatch batch_ = golden_.batch();

  int64_t sequences() const { return batch_.count() / batch_.seq_len; }
};

TEST_P(GoldenTest, LogitsLossesAndGradients) {
  TestModel tested(spec_, {}, sequences(), batch_.seq_len);
  golden_.Load(tested);
  ExpectSame(Logits(tested, batch_), golden_.Floats("logits"), "logits");
  const auto valid = std::count_if(batch_.targets.begin(), batch_.targets.end(),
                                   [](int32_t target) { return target >= 0; });
  ASSERT_LT(valid, batch_.count());
  tested.LossAndGradients(batch_, 1.0 / static_cast<double>(valid));
  ExpectSame(tested.losses(), golden_.Floats("losses"), "losses");
  ASSERT_EQ(tested.parameters().size(), golden_.CountGradients());
  for (size_t i = 0; i < tested.parameters().size(); ++i) {
    const Parameter& p = tested.parameters()[i];
    const double* grads = tested.grads(static_cast<int>(i));
    ExpectSame({grads, grads + p.logical_count()}, golden_.Floats("grad." + p.name), p.name);
  }
}

// A head that begins with the unit matrix shows what it is given: the activations of a model cut
// after each layer.
TEST_P(GoldenTest, ActivationsAfterEveryLayer) {
  const int64_t width = spec_.width;
  ASSERT_GE(spec_.vocab_size, width);
  for (int64_t layers = 1; layers <= golden_.spec().layers; ++layers) {
    spec_.layers = layers;
    spec_.tied_head = false;
    TestModel tested(spec_, {}, sequences(), batch_.seq_len);
    golden_.Load(tested);
    const int head = static_cast<int>(tested.parameters().size()) - 1;
    ASSERT_EQ(tested.parameters()[head].name, "head.weight");
    std::fill_n(tested.values(head), spec_.vocab_size * width, 0.0);
    for (int64_t d = 0; d < width; ++d) tested.values(head)[d * width + d] = 1.0;
    tested.model().ValuesChanged();
    const std::vector<double> logits = Logits(tested, batch_);
    std::vector<double> found;
    for (int64_t t = 0; t < batch_.count(); ++t) {
      const double* row = logits.data() + t * spec_.vocab_size;
      found.insert(found.end(), row, row + width);
    }
    const std::string name = "normed_after." + std::to_string(layers);
    ExpectSame(found, golden_.Floats(name), name);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, ::testing::Values("llama", "gpt2"));

}  // namespace
}  // namespace filigree
