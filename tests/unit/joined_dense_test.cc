// Dense weights with one input as one product: where they lie one under the other, with the results
// of one product each.
#include <gtest/gtest.h>

#include <iterator>
#include <string>
#include <vector>

#include "tests/unit/cpu_testing.h"
#include "trainer/linear/linear.h"

namespace filigree {
namespace {

using Matrix = TestMatrix<double>;

constexpr int64_t kTokens = 7, kIn = 10;
constexpr int64_t kOuts[] = {6, 3, 5};

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

struct Case {
  // Elements between the end of a part's weight, or bias, and the next one's.
  int64_t weight_gap = 0, bias_gap = 0;
  bool bias = true;
  int64_t out_alignment = 1, in_alignment = 1;

  bool joins() const {
    return weight_gap == 0 && (!bias || bias_gap == 0) && kIn % in_alignment == 0;
  }
};

class JoinedDenseTest : public ::testing::Test {
 protected:
  // Outputs, input gradients and their sums over rows, and parameters' gradients, after two
  // backward passes.
  struct Results {
    Matrix y, swiglu, dx, sums;
    std::vector<double> grads;  // part by part, weight and bias
    int forward_products = 0, backward_products = 0;
  };

  Results Run(Backend& backend, const Case& test, bool overwrite) {
    std::vector<std::unique_ptr<Linear>> parts;
    std::vector<LinearSpec> specs;
    const SparsitySpec dense;
    const Parameterisation* row = FindParameterisation(dense.parameterisation);
    for (const int64_t out : kOuts) {
      specs.push_back({.name = "part" + std::to_string(out),
                       .out = out,
                       .in = kIn,
                       .bias = test.bias,
                       .out_alignment = test.out_alignment,
                       .in_alignment = test.in_alignment});
      parts.push_back(row->create(specs.back(), dense, SparseLayout::Dense(out, kIn), backend));
    }
    LinearGroup group(std::move(parts), specs, backend);
    Matrix values = Matrix::Random(1, 1000, 1), grads = Matrix::Random(1, 1000, 2);
    const std::vector<BoundParameter> all = Bind(group, test, values, grads, overwrite);
    const int64_t in = specs[0].padded_in();
    Results results = {.y = Matrix(kTokens, group.out(), 2),
                       .swiglu = Matrix(kTokens, group.out() / 2),
                       .dx = Matrix(kTokens, in),
                       .sums = Matrix::Constant(1, in, 100),
                       .grads = {}};
    Matrix x = Matrix::Random(kTokens, in, 3, 1), dy = Matrix::Random(kTokens, group.out(), 4, 2);
    for (int64_t t = 0; t < kTokens; ++t) {  // padding is zero
      for (int64_t j = kIn; j < in; ++j) x(t, j) = 0;
      for (size_t i = 0; i < specs.size(); ++i) {
        const int64_t end = group.bias_begin(static_cast<int>(i)) + specs[i].padded_out();
        for (int64_t j = end - specs[i].padded_out() + specs[i].out; j < end; ++j) dy(t, j) = 0;
      }
    }
    group.Materialize(*stream_);
    group.Forward(x.view(), results.y.view(), {}, {.swiglu_output = {results.swiglu.view()}},
                  *stream_);
    results.forward_products = backend_.products;
    for (const bool accumulate : {false, true}) {
      group.Backward(x.view(), dy.view(), {},
                     {.dx = results.dx.view(),
                      .column_sums = results.sums.flat(),
                      .accumulate_sums = accumulate},
                     *stream_);
    }
    results.backward_products = backend_.products - results.forward_products;
    for (const BoundParameter& parameter : all) {
      const double* numbers = parameter.grads.As<double>();
      results.grads.insert(results.grads.end(), numbers, numbers + parameter.grads.size());
    }
    return results;
  }

  // Gives the parts their memory and numbers, the same wherever they lie.
  static std::vector<BoundParameter> Bind(LinearGroup& group, const Case& test, Matrix& values,
                                          Matrix& grads, const bool& overwrite) {
    int64_t weight = 0, bias = 500;
    std::vector<BoundParameter> all;
    for (size_t i = 0; i < std::size(kOuts); ++i) {
      std::vector<BoundParameter> bound;
      for (const Parameter& parameter : group.parts()[i]->Parameters()) {
        const bool is_bias = parameter.shape.size() == 1;
        const int64_t count = parameter.segment_count();
        const int64_t begin = is_bias ? bias : weight;
        (is_bias ? bias : weight) += count + (is_bias ? test.bias_gap : test.weight_gap);
        bound.push_back(
            {values.flat().Range(begin, count), grads.flat().Range(begin, count), &overwrite});
        std::vector<int64_t> cells = parameter.layout.LogicalIndices();
        cells.resize(static_cast<size_t>(count), -1);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t cell = cells[static_cast<size_t>(k)];
          const auto number = static_cast<double>((7 * cell + 3 * static_cast<int64_t>(i)) % 11);
          bound.back().values.As<double>()[k] = cell < 0 ? 0 : 0.1 * number - 0.5;
          bound.back().grads.As<double>()[k] = cell < 0 ? 0 : 0.25 * static_cast<double>(cell % 5);
        }
      }
      group.parts()[i]->Bind(bound, {});
      all.insert(all.end(), bound.begin(), bound.end());
    }
    group.JoinParts({});
    return all;
  }

  CpuDevice device_{DType::kF64};
  CpuBackend apart_{device_};
  CountingBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

// Sums of the two passes' input gradients, which are the same.
double TwiceTheSum(const Matrix& dx, int64_t column) {
  double sum = 0;
  for (int64_t t = 0; t < dx.rows(); ++t) sum += 2 * dx(t, column);
  return sum;
}

TEST_F(JoinedDenseTest, OneProductWhereWeightsAndBiasesLieTogether) {
  const Case cases[] = {{},
                        {.weight_gap = 6},
                        {.bias_gap = 2},
                        {.bias = false},
                        {.weight_gap = 6, .bias = false},
                        {.out_alignment = 4},
                        {.weight_gap = 8, .out_alignment = 4},
                        {.bias = false, .out_alignment = 4},
                        {.in_alignment = 4},
                        {.bias = false, .out_alignment = 4, .in_alignment = 4}};
  for (const bool overwrite : {false, true}) {
    for (const Case& test : cases) {
      SCOPED_TRACE(testing::Message()
                   << test.weight_gap << " and " << test.bias_gap << " between, "
                   << (test.bias ? "" : "no ") << "bias, padded to " << test.out_alignment
                   << " and " << test.in_alignment << (overwrite ? ", overwritten" : ", added"));
      Results expected = Run(apart_, test, overwrite);
      backend_.products = 0;
      Results found = Run(backend_, test, overwrite);
      EXPECT_EQ(found.forward_products, test.joins() ? 1 : 3);
      EXPECT_EQ(found.backward_products, test.joins() ? 2 * 2 : 2 * 6);
      ExpectNear(found.y, [&](int64_t i, int64_t j) { return std::as_const(expected).y(i, j); });
      const int64_t half = expected.y.view().cols() / 2;
      Matrix swiglu(kTokens, half);
      apart_.SwiGlu(
          {expected.y.view().Cols(0, half), expected.y.view().Cols(half, half), swiglu.view()},
          *stream_);
      for (Matrix* made : {&found.swiglu, &expected.swiglu}) {
        ExpectNear(*made, [&](int64_t i, int64_t j) { return std::as_const(swiglu)(i, j); });
      }
      ExpectNear(found.dx, [&](int64_t i, int64_t j) { return std::as_const(expected).dx(i, j); });
      ExpectNear(found.sums, [&](int64_t, int64_t j) { return TwiceTheSum(found.dx, j); });
      ASSERT_EQ(found.grads.size(), expected.grads.size());
      for (size_t k = 0; k < found.grads.size(); ++k) {
        EXPECT_NEAR(found.grads[k], expected.grads[k], 1e-12) << k;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
