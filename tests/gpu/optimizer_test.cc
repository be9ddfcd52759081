#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

class GpuOptimizerTest : public GpuTest {
 protected:
  struct State {
    State(int64_t n, DType value, DType grad)
        : master(Mirror::Random(1, n, DType::kF32, 1, 0.02)),
          values(Mirror::Random(1, n, value, 2)),
          grads(Mirror::Random(1, n, grad, 3, 1e-3)),
          m(Mirror::Random(1, n, DType::kF32, 4, 1e-3)),
          v(Mirror::Of(1, n, DType::kF32, Squares(n))),
          born(Mirror::Of(1, n, DType::kF32, Births(n))) {}

    static std::vector<double> Squares(int64_t n) {
      std::vector<double> squares = Mirror::Random(1, n, DType::kF32, 5, 1e-3).Reference();
      for (double& x : squares) x *= x;
      return squares;
    }

    // Ages of 1 to 7 at step 7; most elements were there from the start.
    static std::vector<double> Births(int64_t n) {
      std::vector<double> births(n, 0.0);
      for (int64_t i = 0; i < n; i += 3) births[i] = static_cast<double>(i % 7);
      return births;
    }

    Mirror master, values, grads, m, v, born;
  };

  // The update of the elements [begin, end) on both sides.
  static void Update(State& state, int64_t begin, int64_t end, float scale, bool with_cpu,
                     int64_t growth_ramp = 0) {
    const DeviceBuffer scalar = device().Allocate(sizeof(float), "test");
    device().CopyAsync(scalar.View(DType::kF32, 1), ConstTensorView(&scale, DType::kF32, {1}),
                       stream());
    AdamWArgs args;
    args.lr = 3e-3;
    args.weight_decay = 0.1;
    args.step = 7;
    const auto range = [&](TensorView flat) { return flat.Range(begin, end - begin); };
    args.values = range(state.values.gpu_flat());
    args.master = range(state.master.gpu_flat());
    args.grads = range(state.grads.gpu_flat());
    args.m = range(state.m.gpu_flat());
    args.v = range(state.v.gpu_flat());
    args.scale = scalar.View(DType::kF32, 1);
    args.growth_ramp = growth_ramp;
    if (growth_ramp > 0) args.born = range(state.born.gpu_flat());
    gpu().AdamW(args, stream());
    stream().Synchronize();
    if (!with_cpu) return;
    args.values = range(state.values.cpu_flat());
    args.master = range(state.master.cpu_flat());
    args.grads = range(state.grads.cpu_flat());
    args.m = range(state.m.cpu_flat());
    args.v = range(state.v.cpu_flat());
    if (growth_ramp > 0) args.born = range(state.born.cpu_flat());
    args.scale = ConstTensorView(&scale, DType::kF32, {1});
    cpu().AdamW(args, cpu_stream());
  }
};

TEST_F(GpuOptimizerTest, AdamWFollowsTheReference) {
  for (DType grad : {DType::kF32, DType::kBF16}) {
    for (DType value : {DType::kBF16, DType::kF32}) {
      for (int64_t n : {1, 7, 8, 2049, 100003}) {
        State state(n, value, grad);
        Update(state, 0, n, 0.37f, true);
        ExpectParity(state.master, "master", 1e-6);
        ExpectParity(state.values, "values", 1e-6);
        ExpectParity(state.m, "m", 1e-6);
        ExpectParity(state.v, "v", 1e-6);
      }
    }
  }
}

TEST_F(GpuOptimizerTest, AdamWOfElementsWithAgesOfTheirOwn) {
  for (int64_t n : {7, 8, 2049}) {
    for (int64_t growth_ramp : {1, 4, 100}) {
      State state(n, DType::kBF16, DType::kF32);
      Update(state, 0, n, 1.0f, true, growth_ramp);
      ExpectParity(state.master, "master", 1e-6);
      ExpectParity(state.values, "values", 1e-6);
      ExpectParity(state.m, "m", 1e-6);
      ExpectParity(state.v, "v", 1e-6);
    }
  }
}

// Neighbours of the range keep their bits, whatever its alignment.
TEST_F(GpuOptimizerTest, AdamWOfRangesThatStartAnywhere) {
  constexpr int64_t kCount = 1000;
  for (int64_t begin : {1, 3, 8, 16}) {
    for (int64_t end : {begin + 1, begin + 20, kCount - 3}) {
      State state(kCount, DType::kBF16, DType::kF32);
      Update(state, begin, end, 1.0f, true);
      ExpectParity(state.master, "master", 1e-6);
      ExpectParity(state.values, "values", 1e-6);
      ExpectParity(state.m, "m", 1e-6);
      ExpectParity(state.v, "v", 1e-6);
    }
  }
}

TEST_F(GpuOptimizerTest, AdamWWithoutAFiniteScaleWritesNothing) {
  for (float scale :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    State state(777, DType::kBF16, DType::kF32);
    Update(state, 0, 777, scale, /*with_cpu=*/false);
    for (Mirror* array : {&state.master, &state.values, &state.m, &state.v}) {
      ExpectEqual(*array, "untouched");
    }
  }
}

TEST_F(GpuOptimizerTest, MasterMayBeTheValues) {
  State state(5000, DType::kF32, DType::kF32);
  const float scale = 1;
  const DeviceBuffer scalar = device().Allocate(sizeof(float), "test");
  device().CopyAsync(scalar.View(DType::kF32, 1), ConstTensorView(&scale, DType::kF32, {1}),
                     stream());
  AdamWArgs args;
  args.lr = 1e-2;
  args.values = args.master = state.master.gpu_flat();
  args.grads = state.grads.gpu_flat();
  args.m = state.m.gpu_flat();
  args.v = state.v.gpu_flat();
  args.scale = scalar.View(DType::kF32, 1);
  gpu().AdamW(args, stream());
  stream().Synchronize();
  args.values = args.master = state.master.cpu_flat();
  args.grads = state.grads.cpu_flat();
  args.m = state.m.cpu_flat();
  args.v = state.v.cpu_flat();
  args.scale = ConstTensorView(&scale, DType::kF32, {1});
  cpu().AdamW(args, cpu_stream());
  ExpectParity(state.master, "master", 1e-6);
}

TEST_F(GpuOptimizerTest, RoundsAsTheCpuDoes) {
  for (int64_t n : {1, 7, 2048, 100003}) {
    for (int64_t begin : {0, 1}) {  // 1: not aligned for vectors
      if (begin >= n) continue;
      const Mirror in = Mirror::Random(1, n, DType::kF32, 3);
      const int64_t count = n - begin;
      const DeviceBuffer out = device().Allocate(n * sizeof(BFloat16), "test");
      const TensorView rounded = out.View(DType::kBF16, count, begin * sizeof(BFloat16));
      gpu().Round({.in = in.gpu_flat().Range(begin, count), .out = rounded}, stream());
      std::vector<BFloat16> found(count), expected(count);
      device().CopyAsync(TensorView(found.data(), DType::kBF16, {count}), rounded, stream());
      stream().Synchronize();
      const std::vector<double> doubles = in.Download();
      const std::vector<float> source(doubles.begin() + begin, doubles.end());
      cpu().Round({.in = ConstTensorView(source.data(), DType::kF32, {count}),
                   .out = TensorView(expected.data(), DType::kBF16, {count})},
                  cpu_stream());
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), count * sizeof(BFloat16)), 0) << n;
    }
  }
}

TEST_F(GpuOptimizerTest, SumsOfSquares) {
  const DeviceBuffer buffer = device().Allocate(sizeof(double), "test");
  const TensorView out = buffer.View(DType::kF64, 1);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t n : {1, 7, 2048, 100003, 5'000'001}) {
      for (int64_t begin : {0, 1}) {
        if (begin >= n) continue;
        Mirror integers = Mirror::Integers(1, n, dtype, 1), random = Mirror::Random(1, n, dtype, 2);
        for (Mirror* in : {&integers, &random}) {
          const double start = 3;
          double found = 0, again = 0, expected = start;
          for (double* result : {&found, &again}) {
            device().CopyAsync(out, ConstTensorView(&start, DType::kF64, {1}), stream());
            gpu().SumOfSquares({.in = in->gpu_flat().Range(begin, n - begin), .out = out},
                               stream());
            device().CopyAsync(TensorView(result, DType::kF64, {1}), out, stream());
            stream().Synchronize();
          }
          cpu().SumOfSquares({.in = in->cpu_flat().Range(begin, n - begin),
                              .out = TensorView(&expected, DType::kF64, {1})},
                             cpu_stream());
          EXPECT_EQ(found, again) << n;
          if (in == &integers) {
            EXPECT_EQ(found, expected) << n;
          } else {
            EXPECT_NEAR(found, expected, 1e-6 * expected) << n;
          }
        }
      }
    }
  }
}

TEST_F(GpuOptimizerTest, ClipScaleIsTheHostsToTheBit) {
  const DeviceBuffer buffer = device().Allocate(2 * sizeof(double), "test");
  const TensorView sum = buffer.View(DType::kF64, 1);
  const TensorView scale = buffer.View(DType::kF32, 1, sizeof(double));
  const double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> sums = {0, 1, 16, infinity, std::nan("")};
  for (int i = 1; i < 200; ++i) sums.push_back(1e-3 * i * i * i / 7.0);
  for (const double clip_norm : {0.0, 1.0, 0.3}) {
    for (const double value : sums) {
      float found = 0, expected = 0;
      device().CopyAsync(sum, ConstTensorView(&value, DType::kF64, {1}), stream());
      gpu().ClipScale({sum, scale, clip_norm}, stream());
      device().CopyAsync(TensorView(&found, DType::kF32, {1}), scale, stream());
      stream().Synchronize();
      cpu().ClipScale({ConstTensorView(&value, DType::kF64, {1}),
                       TensorView(&expected, DType::kF32, {1}), clip_norm},
                      cpu_stream());
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(found)) << value;
      } else {
        EXPECT_EQ(found, expected) << value << ", " << clip_norm;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
