// A decoder's training pass beside a teacher of another shape: the loss is the teacher's formula
// over both models' logits, and the gradients are its slope.
#include <cmath>
#include <vector>

#include "tests/unit/model_testing.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 7;
constexpr double kScale = 1.0 / 20, kTemperature = 2.5, kAlpha = 0.4;

ModelSpec Shape(ModelFamily family, int64_t width, int64_t padded_vocab_size) {
  return {.family = family,
          .layers = 2,
          .width = width,
          .heads = 4,
          .kv_heads = 4,
          .head_size = width / 4,
          .feed_forward = 26,
          .vocab_size = 37,
          .padded_vocab_size = padded_vocab_size,
          .max_positions = 9};
}

// Gives logits a few rows at a time, fewer than the student would take at once.
class ModelAsTeacher final : public TeacherLogits {
 public:
  explicit ModelAsTeacher(TestModel& model) : model_(model) {}
  int64_t max_rows() const override { return 4; }
  ConstTensorView Rows(int64_t begin, int64_t rows, Stream& stream) override {
    return model_.model().HiddenLogits(begin, rows, stream);
  }

 private:
  TestModel& model_;
};

class DistillationTest : public ::testing::Test {
 protected:
  DistillationTest()
      : student_(Shape(ModelFamily::kLlama, 16, 40), {}, 3, kSeqLen),
        taught_(Shape(ModelFamily::kGpt2, 24, 64), {}, 3, kSeqLen),
        teacher_(taught_),
        batch_(TestBatch::Random(3, kSeqLen, 37, 1)) {
    student_.Randomize();
    taught_.Randomize();
    taught_.model().ForwardHidden(batch_.view(), taught_.stream());
  }

  // The objective; gradients are added.
  double Objective() {
    const auto count = batch_.count();
    losses_.assign(count, 0.0);
    divergences_.assign(count, 0.0);
    const auto view = [&](std::vector<double>& values) {
      return TensorView(values.data(), DType::kF64, {count});
    };
    const Distillation distillation = {.teacher = &teacher_,
                                       .temperature = kTemperature,
                                       .alpha = kAlpha,
                                       .divergences = view(divergences_)};
    MicroBatch batch = batch_.view();
    batch.distillation = &distillation;
    student_.model().ForwardBackward(batch, kScale, view(losses_), student_.stream());
    double sum = 0;
    for (int64_t t = 0; t < count; ++t) {
      sum += kScale * ((1 - kAlpha) * losses_[t] + kAlpha * divergences_[t]);
    }
    return sum;
  }
  double ObjectiveAt(double* value, double at) {
    *value = at;
    student_.model().ValuesChanged();
    return Objective();
  }

  TestModel student_, taught_;
  ModelAsTeacher teacher_;
  TestBatch batch_;
  std::vector<double> losses_, divergences_;
};

TEST_F(DistillationTest, LossesAreTheFormulaOverBothModelsLogits) {
  Objective();
  const std::vector<double> losses = losses_, divergences = divergences_;
  student_.Loss(batch_);
  for (int64_t t = 0; t < batch_.count(); ++t) {
    EXPECT_NEAR(losses[t], student_.losses()[t], 1e-12) << "cross-entropy of token " << t;
  }
  // Logits of both for all tokens, kept on the host.
  const auto log_probabilities = [&](TestModel& model) {
    model.model().ForwardHidden(batch_.view(), model.stream());
    const ConstTensorView logits =
        model.model().HiddenLogits(0, batch_.count(), model.stream()).Cols(0, 37);
    std::vector<std::vector<double>> rows;
    for (int64_t t = 0; t < batch_.count(); ++t) {
      const double* row = logits.Rows(t, 1).As<double>();
      double sum = 0;
      for (int j = 0; j < 37; ++j) sum += std::exp(row[j] / kTemperature);
      rows.emplace_back();
      for (int j = 0; j < 37; ++j) rows.back().push_back(row[j] / kTemperature - std::log(sum));
    }
    return rows;
  };
  const auto p = log_probabilities(taught_), q = log_probabilities(student_);
  for (int64_t t = 0; t < batch_.count(); ++t) {
    double divergence = 0;
    for (int j = 0; j < 37; ++j) divergence += std::exp(p[t][j]) * (p[t][j] - q[t][j]);
    divergence *= batch_.targets[t] < 0 ? 0 : kTemperature * kTemperature;
    EXPECT_NEAR(divergences[t], divergence, 1e-11) << "token " << t;
    EXPECT_EQ(divergence > 1e-3, batch_.targets[t] >= 0);
  }
}

TEST_F(DistillationTest, GradientsAreTheSlopeOfTheObjective) {
  constexpr double kStep = 1e-5;
  student_.ZeroGradients();
  Objective();
  // Later passes add to them.
  std::vector<std::vector<double>> gradients;
  for (size_t i = 0; i < student_.parameters().size(); ++i) {
    const double* grads = student_.grads(static_cast<int>(i));
    gradients.emplace_back(grads, grads + student_.parameters()[i].segment_count());
  }
  for (size_t i = 0; i < student_.parameters().size(); ++i) {
    const Parameter& parameter = student_.parameters()[i];
    for (int64_t slot : {int64_t{0}, parameter.layout.stored_count() / 2}) {
      double* value = student_.values(static_cast<int>(i)) + slot;
      const double kept = *value;
      const double slope =
          (ObjectiveAt(value, kept + kStep) - ObjectiveAt(value, kept - kStep)) / (2 * kStep);
      ObjectiveAt(value, kept);
      EXPECT_NEAR(gradients[i][slot], slope, 1e-9 + 1e-7 * std::abs(slope))
          << parameter.name << " slot " << slot;
    }
  }
}

}  // namespace
}  // namespace filigree
