// What the tests of linears share: a small weight, the variants of every parameterisation, and a
// linear with memory of its own.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/unit/cpu_testing.h"
#include "trainer/linear/linear.h"

namespace filigree {

using Matrix = TestMatrix<double>;

constexpr int64_t kTokens = 7, kOut = 13, kIn = 10;

inline LinearSpec Spec() {
  return {.name = "layers.0.mlp.up", .out = kOut, .in = kIn, .bias = true};
}

// What to test of each row of the registry; a row that is not named here is tested as it comes.
inline std::vector<SparsitySpec> Variants(std::string_view name) {
  SparsitySpec spec;
  spec.parameterisation = name;
  if (name == "dense") return {spec};
  spec.sparsity = 0.6;
  spec.block_out = 4;
  spec.block_in = 3;
  spec.n = 2;
  spec.m = 5;
  spec.rank = 3;
  spec.alpha = 6;
  spec.micro_batch_tokens = kTokens;
  if (name != "sparse_plus_low_rank") return {spec};
  SparsitySpec kept = spec, blocks = spec;
  kept.keep_rebuilt = true;
  blocks.sparse_part = SparsePart::kBlocks;
  blocks.compute = LowRankCompute::kRebuild;
  SparsitySpec factored = blocks;
  factored.compute = LowRankCompute::kFactored;
  return {spec, kept, blocks, factored};
}

// A linear with memory of its own, its parameters drawn at random.
class BoundLinear {
 public:
  BoundLinear(const LinearSpec& spec, const SparsitySpec& sparsity, Backend& backend) {
    const Parameterisation* row = FindParameterisation(sparsity.parameterisation);
    const Status valid = row->validate(spec, sparsity);
    CHECK(valid.ok()) << valid.message();
    linear_ = row->create(spec, sparsity, row->draw_layout(spec, sparsity, 1), backend);
    std::vector<BoundParameter> bound;
    for (const Parameter& parameter : linear_->Parameters()) {
      const int64_t count = parameter.segment_count();
      Matrix value = Matrix::Random(1, count, RngStream(parameter.name));
      const std::vector<int64_t> logical = parameter.layout.LogicalIndices();
      for (int64_t i = 0; i < count; ++i) {
        if (logical[i] < 0) value(0, i) = 0;  // edge padding
      }
      names_.push_back(parameter.name);
      values_.push_back(value);
      grads_.emplace_back(1, count);
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      bound.push_back({values_[i].flat(), grads_[i].flat(), &overwrite_});
    }
    const int64_t scratch = linear_->memory(DType::kF64).scratch_bytes / sizeof(double);
    scratch_ = Matrix::Constant(1, std::max<int64_t>(scratch, 1), NAN);
    linear_->Bind(bound, scratch > 0 ? scratch_.flat() : TensorView());
    const int64_t inner = linear_->inner_width();
    inner_ = Matrix::Constant(kTokens, std::max<int64_t>(inner, 1), NAN, 2);
    inner_grads_ = Matrix::Constant(kTokens, std::max<int64_t>(inner, 1), NAN, 1);
    has_inner_ = inner > 0;
  }

  void Forward(Matrix& x, Matrix& y, const ProductEpilogue& epilogue, Stream& stream) {
    linear_->Materialize(stream);
    linear_->Forward(x.view(), y.view(), has_inner_ ? inner_.view() : TensorView(), epilogue,
                     stream);
  }
  void Backward(Matrix& x, Matrix& dy, const InputGrad& input_grad, Stream& stream) {
    InnerActivations inner;
    if (has_inner_) inner = {inner_.view(), inner_grads_.view()};
    linear_->Backward(x.view(), dy.view(), inner, input_grad, stream);
  }

  Linear& linear() { return *linear_; }
  const std::vector<std::string>& names() const { return names_; }
  std::vector<Matrix>& values() { return values_; }
  std::vector<Matrix>& grads() { return grads_; }
  void set_overwrite(bool overwrite) { overwrite_ = overwrite; }

 private:
  bool overwrite_ = false;
  std::unique_ptr<Linear> linear_;
  std::vector<std::string> names_;
  std::vector<Matrix> values_, grads_;
  Matrix scratch_{1, 1}, inner_{1, 1}, inner_grads_{1, 1};
  bool has_inner_ = false;
};

class LinearTest : public ::testing::Test {
 protected:
  CpuDevice device_{DType::kF64};
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

}  // namespace filigree
