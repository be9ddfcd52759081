// Dense weights with one input as one product: where they lie one under the other, with the results
// of one product each.
#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/cpu_testing.h"
#include "trainer/linear/linear.h"

namespace filigree {
namespace {

using Matrix = TestMatrix<double>;

constexpr int64_t kTokens = 7, kIn = 10;
constexpr int64_t kOuts[] = {6, 3, 5};
constexpr int64_t kOut = 14;

// Prefers one product, and counts them.
class CountingBackend final : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  bool joins_products() const override { return true; }
  void MatMul(const MatMulArgs& args, Stream& stream) override {
    ++products;
    CpuBackend::MatMul(args, stream);
  }
  int products = 0;
};

// Where the parts' weights and biases begin, with so many elements between one and the next.
struct Gaps {
  int64_t weights = 0, biases = 0;
};

class JoinedDenseTest : public ::testing::Test {
 protected:
  // Outputs, input gradients and parameters' gradients after two backward passes.
  struct Results {
    Matrix y{kTokens, kOut, 2}, dx{kTokens, kIn}, swiglu{kTokens, kOut / 2};
    std::vector<double> grads;  // part by part, weight and bias
    int forward_products = 0, backward_products = 0;
  };

  Results Run(Backend& backend, const Gaps& gaps, bool overwrite) {
    std::vector<std::unique_ptr<Linear>> parts;
    std::vector<LinearSpec> specs;
    const SparsitySpec dense;
    const Parameterisation* row = FindParameterisation(dense.parameterisation);
    for (const int64_t out : kOuts) {
      specs.push_back({.name = "part" + std::to_string(out), .out = out, .in = kIn, .bias = true});
      parts.push_back(row->create(specs.back(), dense, SparseLayout::Dense(out, kIn), backend));
    }
    LinearGroup group(std::move(parts), specs, backend);
    Matrix values = Matrix::Random(1, 1000, 1), grads = Matrix::Random(1, 1000, 2);
    int64_t weight = 0, bias = 500;
    const auto part_of = [&](int64_t begin, int64_t count) {
      return BoundParameter{values.flat().Range(begin, count), grads.flat().Range(begin, count),
                            &overwrite};
    };
    std::vector<BoundParameter> all;
    for (size_t i = 0; i < specs.size(); ++i) {
      const std::vector<BoundParameter> bound = {part_of(weight, kOuts[i] * kIn),
                                                 part_of(bias, kOuts[i])};
      weight += kOuts[i] * kIn + gaps.weights;
      bias += kOuts[i] + gaps.biases;
      // The same numbers wherever they lie.
      for (const BoundParameter& parameter : bound) {
        for (int64_t k = 0; k < parameter.values.size(); ++k) {
          parameter.values.As<double>()[k] = 0.1 * static_cast<double>((7 * k + 3 * i) % 11) - 0.5;
          parameter.grads.As<double>()[k] = 0.25 * static_cast<double>(k % 5);
        }
        all.push_back(parameter);
      }
      group.parts()[i]->Bind(bound, {});
    }
    group.JoinParts({});
    Results results;
    Matrix x = Matrix::Random(kTokens, kIn, 3, 1), dy = Matrix::Random(kTokens, kOut, 4, 2);
    group.Materialize(*stream_);
    group.Forward(x.view(), results.y.view(), {}, {.swiglu_output = {results.swiglu.view()}},
                  *stream_);
    results.forward_products = backend_.products;
    for (int pass = 0; pass < 2; ++pass) {
      group.Backward(x.view(), dy.view(), {}, {.dx = results.dx.view()}, *stream_);
    }
    results.backward_products = backend_.products - results.forward_products;
    for (const BoundParameter& parameter : all) {
      const double* numbers = parameter.grads.As<double>();
      results.grads.insert(results.grads.end(), numbers, numbers + parameter.grads.size());
    }
    return results;
  }

  CpuDevice device_{DType::kF64};
  CpuBackend apart_{device_};
  CountingBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

TEST_F(JoinedDenseTest, OneProductWhereWeightsAndBiasesLieTogether) {
  for (const bool overwrite : {false, true}) {
    for (const Gaps& gaps : {Gaps{}, Gaps{.weights = 6}, Gaps{.biases = 2}}) {
      SCOPED_TRACE(testing::Message() << gaps.weights << " and " << gaps.biases << " between, "
                                      << (overwrite ? "overwritten" : "added"));
      Results expected = Run(apart_, gaps, overwrite);
      backend_.products = 0;
      Results found = Run(backend_, gaps, overwrite);
      const bool joined = gaps.weights == 0 && gaps.biases == 0;
      EXPECT_EQ(found.forward_products, joined ? 1 : 3);
      EXPECT_EQ(found.backward_products, joined ? 2 * 2 : 2 * 6);
      ExpectNear(found.y, [&](int64_t i, int64_t j) { return std::as_const(expected).y(i, j); });
      Matrix swiglu(kTokens, kOut / 2);
      apart_.SwiGlu({expected.y.view().Cols(0, kOut / 2),
                     expected.y.view().Cols(kOut / 2, kOut / 2), swiglu.view()},
                    *stream_);
      for (Matrix* made : {&found.swiglu, &expected.swiglu}) {
        ExpectNear(*made, [&](int64_t i, int64_t j) { return std::as_const(swiglu)(i, j); });
      }
      ExpectNear(found.dx, [&](int64_t i, int64_t j) { return std::as_const(expected).dx(i, j); });
      ASSERT_EQ(found.grads.size(), expected.grads.size());
      for (size_t k = 0; k < found.grads.size(); ++k) {
        EXPECT_NEAR(found.grads[k], expected.grads[k], 1e-12) << k;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
