// Formed weights with one input as one product, their stored cells laid out and gathered together:
// with the results of one product each.
#include <gtest/gtest.h>

#include <list>
#include <vector>

#include "tests/unit/cpu_testing.h"
#include "trainer/linear/linear.h"

namespace filigree {
namespace {

using Matrix = TestMatrix<double>;

constexpr int64_t kTokens = 7, kIn = 10;
constexpr int64_t kOuts[] = {6, 3, 5};

// Counts what it is asked for.
class CountingBackend final : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void MatMul(const MatMulArgs& args, Stream& stream) override {
    ++products;
    CpuBackend::MatMul(args, stream);
  }
  void ScatterGroup(std::span<const ScatterStoredArgs> parts, Stream& stream) override {
    ++scatters;
    CpuBackend::ScatterGroup(parts, stream);
  }
  void GatherGroup(std::span<const GatherStoredArgs> parts, Stream& stream) override {
    ++gathers;
    CpuBackend::GatherGroup(parts, stream);
  }
  int products = 0, scatters = 0, gathers = 0;
};

struct Case {
  const char* parameterisation;
  bool kept = true, bias = true, overwrite = false;
  int64_t out_alignment = 1;
};

class JoinedFormedTest : public ::testing::Test {
 protected:
  // Part after part as a group, or each alone.
  struct Results {
    Matrix y, dx{kTokens, kIn};
    std::vector<double> grads = {};  // part by part
  };

  // Parts with memory of their own.
  struct Parts {
    std::vector<std::unique_ptr<Linear>> linears;
    std::vector<LinearSpec> specs;
    std::list<Matrix> values, grads;
    std::vector<std::vector<BoundParameter>> bound;
  };

  static Parts MakeParts(const Case& c, Backend& backend, const bool* overwrite) {
    SparsitySpec sparsity;
    sparsity.parameterisation = c.parameterisation;
    sparsity.sparsity = 0.6;
    sparsity.rank = 3;
    sparsity.alpha = 6;
    sparsity.micro_batch_tokens = kTokens;
    sparsity.keep_rebuilt = c.kept;
    const Parameterisation* row = FindParameterisation(c.parameterisation);
    Parts parts;
    for (const int64_t out : kOuts) {
      const LinearSpec spec = {.name = "layers.0.part" + std::to_string(out),
                               .out = out,
                               .in = kIn,
                               .bias = c.bias,
                               .out_alignment = c.out_alignment};
      parts.specs.push_back(spec);
      parts.linears.push_back(
          row->create(spec, sparsity, row->draw_layout(spec, sparsity, 1), backend));
      parts.bound.emplace_back();
      for (const Parameter& parameter : parts.linears.back()->Parameters()) {
        const int64_t count = parameter.segment_count(), live = count - parameter.padding_count;
        Matrix value = Matrix::Random(1, count, RngStream(parameter.name));
        for (int64_t i = live; i < count; ++i) value(0, i) = 0;
        parts.values.push_back(value);
        parts.grads.push_back(Matrix::Constant(1, count, 0.5));
        parts.bound.back().push_back(
            {parts.values.back().flat(), parts.grads.back().flat(), overwrite});
      }
    }
    return parts;
  }

  // The columns of part i begin at a multiple of its alignment.
  static int64_t Width(const Parts& parts) {
    int64_t width = 0;
    for (const LinearSpec& spec : parts.specs) width += spec.padded_out();
    return width;
  }
  static Matrix OutputGradient(const Parts& parts) {
    Matrix dy = Matrix::Random(kTokens, Width(parts), 4, 2);
    int64_t begin = 0;
    for (const LinearSpec& spec : parts.specs) {
      for (int64_t j = spec.out; j < spec.padded_out(); ++j) {
        for (int64_t t = 0; t < kTokens; ++t) dy(t, begin + j) = 0;
      }
      begin += spec.padded_out();
    }
    return dy;
  }

  static std::vector<double> GradsOf(Parts& parts) {
    std::vector<double> all;
    for (Matrix& grads : parts.grads) {
      all.insert(all.end(), grads.data().begin(), grads.data().end());
    }
    return all;
  }

  Results Alone(const Case& c) {
    Parts parts = MakeParts(c, apart_, &c.overwrite);
    Results results{.y = Matrix(kTokens, Width(parts), 2)};
    Matrix x = Matrix::Random(kTokens, kIn, 3, 1), dy = OutputGradient(parts);
    int64_t begin = 0;
    for (size_t i = 0; i < parts.specs.size(); ++i) {
      Linear& linear = *parts.linears[i];
      const int64_t width = parts.specs[i].padded_out();
      Matrix scratch = Matrix::Constant(1, width * kIn, NAN);
      linear.Bind(parts.bound[i], scratch.flat());
      linear.Materialize(*stream_);
      linear.Forward(x.view(), results.y.view().Cols(begin, width), {}, {}, *stream_);
      for (int pass = 0; pass < 2; ++pass) {
        linear.Backward(x.view(), dy.view().Cols(begin, width), {},
                        {.dx = results.dx.view(), .accumulate = i > 0 || pass > 0}, *stream_);
      }
      begin += width;
    }
    results.grads = GradsOf(parts);
    return results;
  }

  Results Joined(const Case& c) {
    Parts parts = MakeParts(c, backend_, &c.overwrite);
    Results results{.y = Matrix(kTokens, Width(parts), 2)};
    Matrix x = Matrix::Random(kTokens, kIn, 3, 1), dy = OutputGradient(parts);
    LinearGroup group(std::move(parts.linears), parts.specs, backend_);
    const LinearMemory memory = group.memory(DType::kF64, /*biases_adjacent=*/true);
    const int64_t weights = Width(parts) * kIn * static_cast<int64_t>(sizeof(double));
    EXPECT_EQ(memory.scratch_bytes, weights);
    EXPECT_EQ(memory.compute_copy_bytes, c.kept ? weights : 0);
    Matrix scratch = Matrix::Constant(1, Width(parts) * kIn, NAN);
    for (size_t i = 0; i < parts.specs.size(); ++i) {
      group.parts()[i]->Bind(parts.bound[i], scratch.flat());
    }
    group.JoinParts(scratch.flat());
    backend_.products = backend_.scatters = backend_.gathers = 0;
    group.Materialize(*stream_);
    EXPECT_EQ(backend_.scatters, c.kept ? 1 : 0);
    group.Forward(x.view(), results.y.view(), {}, {}, *stream_);
    EXPECT_EQ(backend_.scatters, 1);
    for (int pass = 0; pass < 2; ++pass) {
      group.Backward(x.view(), dy.view(), {}, {.dx = results.dx.view(), .accumulate = pass > 0},
                     *stream_);
    }
    EXPECT_EQ(backend_.gathers, 2);
    EXPECT_EQ(backend_.scatters, c.kept ? 1 : 3);
    if (c.parameterisation == std::string("masked")) {
      EXPECT_EQ(backend_.products, 1 + 2 * 2);
    }
    results.grads = GradsOf(parts);
    return results;
  }

  CpuDevice device_{DType::kF64};
  CpuBackend apart_{device_};
  CountingBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

TEST_F(JoinedFormedTest, OneScatterProductAndGatherWithTheResultsOfEach) {
  const Case cases[] = {{.parameterisation = "masked"},
                        {.parameterisation = "masked", .bias = false},
                        {.parameterisation = "masked", .overwrite = true},
                        {.parameterisation = "masked", .out_alignment = 4},
                        {.parameterisation = "sparse_plus_low_rank"},
                        {.parameterisation = "sparse_plus_low_rank", .kept = false},
                        {.parameterisation = "sparse_plus_low_rank",
                         .kept = false,
                         .bias = false,
                         .overwrite = true}};
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << c.parameterisation << (c.kept ? ", kept" : ", formed anew")
                 << (c.bias ? ", biases" : "") << ", aligned to " << c.out_alignment
                 << (c.overwrite ? ", overwritten" : ", added"));
    const Results expected = Alone(c);
    Results found = Joined(c);
    ExpectNear(found.y, [&](int64_t i, int64_t j) { return expected.y(i, j); });
    ExpectNear(found.dx, [&](int64_t i, int64_t j) { return expected.dx(i, j); });
    ASSERT_EQ(found.grads.size(), expected.grads.size());
    for (size_t k = 0; k < found.grads.size(); ++k) {
      ASSERT_NEAR(found.grads[k], expected.grads[k],
                  1e-12 * std::max(1.0, std::abs(expected.grads[k])))
          << k;
    }
  }
}

}  // namespace
}  // namespace filigree
