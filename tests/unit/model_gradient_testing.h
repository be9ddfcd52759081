// What the tests of a model's gradients share: an odd model of either family, and a loss over it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "tests/unit/model_testing.h"

namespace filigree {

inline constexpr int64_t kSeqLen = 7;

// No width is a multiple of the blocks, three key-value heads, a vocabulary that needs padding.
inline ModelSpec Odd(ModelFamily family, bool tied_head) {
  return {.family = family,
          .layers = 2,
          .width = 20,
          .heads = 6,
          .kv_heads = family == ModelFamily::kLlama ? 3 : 6,
          .head_size = 4,
          .feed_forward = 26,
          .vocab_size = 37,
          .padded_vocab_size = 40,
          .max_positions = 9,
          .tied_head = tied_head};
}

inline std::vector<SparsitySpec> HalfOf(std::string_view parameterisation) {
  SparsitySpec sparsity;
  sparsity.parameterisation = std::string(parameterisation);
  sparsity.sparsity = parameterisation == "dense" ? 0.0 : 0.5;
  sparsity.block_out = 8;
  sparsity.block_in = 6;
  sparsity.rank = 3;
  sparsity.n = 1;
  sparsity.m = 2;
  return {sparsity};
}

// Half of the weights whose names match, in the given parameterisation; others dense.
inline SparsitySpec HalfOf(std::string_view parameterisation, const char* pattern) {
  SparsitySpec sparsity = HalfOf(parameterisation)[0];
  sparsity.include = {pattern};
  return sparsity;
}

// A loss over two micro-batches, the second one smaller: gradients add up.
class Problem {
 public:
  Problem(const ModelSpec& spec, const std::vector<SparsitySpec>& sparsity,
          int64_t row_alignment = 1)
      : tested_(spec, sparsity, 3, kSeqLen, {}, row_alignment),
        batches_{TestBatch::Random(3, kSeqLen, spec.vocab_size, 1),
                 TestBatch::Random(1, kSeqLen - 2, spec.vocab_size, 2)} {
    tested_.Randomize();
  }
  TestModel& tested() { return tested_; }

  double Loss() {
    tested_.model().ValuesChanged();
    double sum = 0;
    for (const TestBatch& batch : batches_) sum += kScale * tested_.Loss(batch);
    return sum;
  }
  double LossAndGradients() {
    tested_.ZeroGradients();
    double sum = 0;
    for (const TestBatch& batch : batches_) sum += kScale * tested_.LossAndGradients(batch, kScale);
    return sum;
  }
  // The same gradients, over those that are there.
  void GradientsFromAStart() {
    tested_.model().StartGradients();
    for (const TestBatch& batch : batches_) tested_.LossAndGradients(batch, kScale);
  }

 private:
  static constexpr double kScale = 1.0 / 20;
  TestModel tested_;
  std::vector<TestBatch> batches_;
};

// Over both families, with tied and untied heads.
class GradientTest : public ::testing::TestWithParam<std::tuple<ModelFamily, bool>> {
 protected:
  ModelSpec spec() const { return Odd(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

inline auto Families() {
  return ::testing::Combine(::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2),
                            ::testing::Bool());
}

}  // namespace filigree
