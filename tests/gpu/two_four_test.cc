// Products with 2:4 weights through cuSPARSELt, each by every way that could be chosen: the choice
// itself is a matter of time.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/two_four_plans.h"
#include "kernels/cuda/two_four_weight.h"
#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

enum class Epilogue { kNone, kResidual, kGelu, kGeluCodes, kGeluBackward, kSwiGluBackward };

struct Case {
  int64_t out, in, tokens;
  bool transposed = false, bias = false, accumulate = false;
  Epilogue epilogue = Epilogue::kNone;
  int64_t gap = 0;

  std::string Name() const {
    return std::string(transposed ? "dX " : "forward ") + std::to_string(out) + "x" +
           std::to_string(in) + ", " + std::to_string(tokens) + " tokens" + (bias ? ", bias" : "") +
           (accumulate ? ", accumulate" : "") + ", epilogue " +
           std::to_string(static_cast<int>(epilogue)) + ", gap " + std::to_string(gap);
  }
};

// A weight of 2:4, in columns as well if `transposable`, of small integers or random values.
Mirror Weight(int64_t out, int64_t in, bool transposable, bool integers) {
  const SparseLayout layout = RandomNM(out, in, 2, 4, transposable, 3, "two four");
  Mirror values = integers
                      ? Mirror::Integers(1, layout.stored_count(), DType::kBF16, 11)
                      : Mirror::Random(1, layout.stored_count(), DType::kBF16, 11,
                                       1 / std::sqrt(static_cast<double>(transposable ? out : in)));
  const std::vector<double> stored = values.Reference();
  const std::vector<int64_t> cells = layout.LogicalIndices();
  std::vector<double> dense(out * in, 0);
  for (size_t i = 0; i < cells.size(); ++i) dense[cells[i]] = stored[i];
  return Mirror::Of(out, in, DType::kBF16, dense);
}

// A product's operands and outputs on both sides.
class Operands {
 public:
  Operands(const Case& c, Mirror& weight, bool integers, Device& device)
      : case_(c),
        weight_(weight),
        width_(c.transposed ? c.in : c.out),
        input_(Draw(c.transposed ? c.out : c.in, 1, integers)),
        operand_(Draw(width_, 2, integers)),
        up_(Draw(width_, 3, integers)),
        out_(c.accumulate ? Draw(width_, 4, integers)
                          : Mirror::Output(c.tokens, width_, DType::kBF16, c.gap)),
        beside_(Mirror::Output(c.tokens, width_, DType::kBF16, c.gap)),
        bias_(integers ? Mirror::Integers(1, width_, DType::kBF16, 5)
                       : Mirror::Random(1, width_, DType::kBF16, 5)),
        codes_(device.Allocate(c.tokens * width_, "test")),
        cpu_codes_(c.tokens * width_) {}

  MatMulArgs Args(bool gpu) {
    const auto view = [&](Mirror& mirror) { return gpu ? mirror.gpu() : mirror.cpu(); };
    MatMulArgs args = {.a = view(input_),
                       .b = view(weight_),
                       .out = view(out_),
                       .transpose_b = !case_.transposed,
                       .accumulate = case_.accumulate};
    if (case_.bias) args.bias = gpu ? bias_.gpu_flat() : bias_.cpu_flat();
    ProductEpilogue& epilogue = args.epilogue;
    switch (case_.epilogue) {
      case Epilogue::kNone:
        break;
      case Epilogue::kResidual:
        epilogue.residual = view(operand_);
        break;
      case Epilogue::kGelu:
        epilogue.pre_activation = view(beside_);
        break;
      case Epilogue::kGeluCodes:
        epilogue.pre_activation =
            TensorView(gpu ? codes_.data() : cpu_codes_.data(), DType::kU8, {case_.tokens, width_});
        break;
      case Epilogue::kGeluBackward:
        epilogue.gelu_input = view(operand_);
        break;
      case Epilogue::kSwiGluBackward:
        epilogue.swiglu = {view(operand_), view(up_), view(beside_)};
        break;
    }
    return args;
  }
  void Expect(bool integers, const std::string& what) {
    if (integers) return ExpectEqual(out_, what);
    ExpectParity(out_, what, case_.epilogue == Epilogue::kNone ? 1e-4 : 5e-4);
    if (case_.epilogue == Epilogue::kGelu) ExpectParity(beside_, what + ", before gelu");
    if (case_.epilogue == Epilogue::kSwiGluBackward) {
      ExpectParity(beside_, what + ", gradient of up", 5e-4);
    }
  }

 private:
  Mirror Draw(int64_t width, uint64_t seed, bool integers) const {
    return integers ? Mirror::Integers(case_.tokens, width, DType::kBF16, seed, case_.gap)
                    : Mirror::Random(case_.tokens, width, DType::kBF16, seed, 1, case_.gap);
  }

  const Case case_;
  Mirror& weight_;
  const int64_t width_;
  Mirror input_, operand_, up_, out_, beside_, bias_;
  DeviceBuffer codes_;
  std::vector<uint8_t> cpu_codes_;
};

class GpuTwoFourTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    plans_ = TwoFourPlans::Make(gpu());
    if (!plans_) GTEST_SKIP() << "no cuSPARSELt here (LD_LIBRARY_PATH)";
  }
  static TwoFourKind KindOf(bool transposable) {
    return transposable ? TwoFourKind::kRowsAndColumns : TwoFourKind::kRows;
  }
  std::unique_ptr<CompressedSide> Compressed(const TwoFourSide& side, Mirror& weight) {
    return plans_->Compress(side, weight.gpu().data(), stream());
  }
  static std::vector<uint8_t> Downloaded(const void* data, size_t bytes) {
    std::vector<uint8_t> host(bytes);
    const auto count = static_cast<int64_t>(bytes);
    device().CopyAsync(TensorView(host.data(), DType::kU8, {count}),
                       ConstTensorView(data, DType::kU8, {count}), stream());
    stream().Synchronize();
    return host;
  }
  // On both sides.
  static void Replace(Mirror& values, Mirror& by) {
    device().CopyAsync(values.gpu(), by.gpu(), stream());
    const ConstTensorView host = by.cpu();
    std::memcpy(values.cpu().data(), host.data(), host.bytes());
  }
  // On sparse tensor cores, by one algorithm. False: there is none of that number.
  bool RunSparse(const Case& c, Mirror& weight, int algorithm, bool integers) {
    Operands operands(c, weight, integers, device());
    const MatMulArgs args = operands.Args(/*gpu=*/true);
    const auto call = TwoFourCallOf(args, KindOf(true));
    EXPECT_TRUE(call) << c.Name();
    if (!call) return false;
    const auto compressed = Compressed(call->side, weight);
    EXPECT_TRUE(compressed) << c.Name();
    if (!compressed) return false;
    const auto product = TwoFourProduct::Make(*call, algorithm, plans_->context());
    if (!product || product->workspace_bytes() > plans_->workspace_bytes()) return false;
    if (!plans_->Run(*product, *call, args, *compressed, stream())) return false;
    stream().Synchronize();
    cpu().MatMul(operands.Args(/*gpu=*/false), cpu_stream());
    operands.Expect(integers, c.Name() + ", algorithm " + std::to_string(algorithm));
    return true;
  }

  std::shared_ptr<TwoFourPlans> plans_;
};

constexpr int kDefault = TwoFourProduct::kDefaultAlgorithm;

// Widths of models, and sides and tokens that are no multiple of a tile.
TEST_F(GpuTwoFourTest, ForwardWithEveryEpilogue) {
  for (const auto& [out, in, tokens] : {std::array<int64_t, 3>{768, 256, 1024}, {336, 144, 1032}}) {
    for (const bool transposable : {false, true}) {
      Mirror weight = Weight(out, in, transposable, /*integers=*/false);
      for (const bool bias : {false, true}) {
        for (const Epilogue epilogue :
             {Epilogue::kNone, Epilogue::kResidual, Epilogue::kGelu, Epilogue::kGeluCodes}) {
          const Case c = {.out = out,
                          .in = in,
                          .tokens = tokens,
                          .bias = bias,
                          .epilogue = epilogue,
                          .gap = transposable ? 8 : 0};
          EXPECT_TRUE(RunSparse(c, weight, kDefault, /*integers=*/false)) << c.Name();
        }
      }
    }
  }
}

TEST_F(GpuTwoFourTest, InputGradientOfTransposableMasks) {
  for (const auto& [out, in, tokens] : {std::array<int64_t, 3>{256, 768, 1024}, {144, 336, 1032}}) {
    Mirror weight = Weight(out, in, /*transposable=*/true, /*integers=*/false);
    for (const bool accumulate : {false, true}) {
      for (const Epilogue epilogue :
           {Epilogue::kNone, Epilogue::kGeluBackward, Epilogue::kSwiGluBackward}) {
        const Case c = {.out = out,
                        .in = in,
                        .tokens = tokens,
                        .transposed = true,
                        .accumulate = accumulate,
                        .epilogue = epilogue,
                        .gap = 8};
        EXPECT_TRUE(RunSparse(c, weight, kDefault, /*integers=*/false)) << c.Name();
      }
    }
  }
}

// Whichever is chosen by time computes the same: integers up to 4 * 256 are exact in fp32, and
// rounded once.
TEST_F(GpuTwoFourTest, EveryAlgorithmIsExact) {
  Mirror weight = Weight(256, 512, /*transposable=*/true, /*integers=*/true);
  for (const bool transposed : {false, true}) {
    const Case c = {.out = 256, .in = 512, .tokens = 1032, .transposed = transposed};
    const auto call = TwoFourCallOf(Operands(c, weight, /*integers=*/true, device()).Args(true),
                                    TwoFourKind::kRowsAndColumns);
    ASSERT_TRUE(call);
    const auto product = TwoFourProduct::Make(*call, kDefault, plans_->context());
    ASSERT_TRUE(product);
    int served = 0;
    for (int algorithm = 0; algorithm < product->algorithms(); ++algorithm) {
      served += RunSparse(c, weight, algorithm, /*integers=*/true) ? 1 : 0;
    }
    EXPECT_GT(served, 0);
    std::printf("%s: %d algorithms\n", c.Name().c_str(), served);
  }
}

// The plan's figure is what is held, for sides that are multiples of 64.
TEST_F(GpuTwoFourTest, HoldsWhatThePlanCounts) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{768, 256}, {336, 144}, {2304, 768}}) {
    Mirror weight = Weight(out, in, /*transposable=*/true, /*integers=*/false);
    const auto held = [&] { return device().memory_usage().bytes_by_kind["compute_copies"]; };
    const auto before = held();
    const auto forward = Compressed({.out = out, .in = in}, weight);
    const auto transposed = Compressed({.out = out, .in = in, .transposed = true}, weight);
    const auto now = static_cast<int64_t>(held() - before);
    const int64_t planned = gpu().TwoFourBytes(out, in, TwoFourKind::kRowsAndColumns);
    EXPECT_LE(now, planned) << out << "x" << in;
    const bool whole = out % 64 == 0 && in % 64 == 0;
    EXPECT_EQ(now == planned, whole) << out << "x" << in << ": " << now << " of " << planned;
  }
}

// The short way, in which values alone move, ends in what the library makes of the same weight.
TEST_F(GpuTwoFourTest, ValuesGoWhereTheLibraryPutsThem) {
  for (const auto& [out, in] :
       {std::pair<int64_t, int64_t>{64, 64}, {256, 512}, {2304, 768}, {768, 3072}}) {
    Mirror weight = Weight(out, in, /*transposable=*/true, /*integers=*/false);
    std::vector<double> values = weight.Download();
    for (double& value : values) value *= -3;
    Mirror other = Mirror::Of(out, in, DType::kBF16, values);
    for (const bool transposed : {false, true}) {
      const std::string what =
          std::to_string(out) + "x" + std::to_string(in) + (transposed ? ", transposed" : "");
      const auto side = Compressed({.out = out, .in = in, .transposed = transposed}, weight);
      ASSERT_TRUE(side) << what;
      EXPECT_TRUE(side->has_places()) << what;
      const DeviceBuffer words = device().Allocate(side->bytes(), "test");
      side->CompressByLibrary(other.gpu().data(), words.data(), plans_->workspace(),
                              NativeStream(stream()));
      side->Compress(other.gpu().data(), plans_->workspace(), NativeStream(stream()));
      EXPECT_EQ(Downloaded(side->data(), side->bytes()), Downloaded(words.data(), side->bytes()))
          << what;
    }
  }
}

// A live cell of zero hides the mask: then the library compresses.
TEST_F(GpuTwoFourTest, AZeroAmongTheStoredIsNotTakenForTheMask) {
  Mirror weight = Weight(256, 512, /*transposable=*/true, /*integers=*/false);
  std::vector<double> values = weight.Download();
  *std::ranges::find_if(values, [](double value) { return value != 0; }) = 0;
  Mirror with_zero = Mirror::Of(256, 512, DType::kBF16, values);
  for (const bool transposed : {false, true}) {
    const TwoFourSide side = {.out = 256, .in = 512, .transposed = transposed};
    EXPECT_TRUE(Compressed(side, weight)->has_places());
    EXPECT_FALSE(Compressed(side, with_zero)->has_places());
  }
}

// Through the backend: the choice is made and logged, results are the same before and after, and
// after a change of the weight.
TEST_F(GpuTwoFourTest, WeightsFollowTheirValues) {
  constexpr int64_t kOut = 2304, kIn = 768, kTokens = 2048;
  for (const bool transposable : {false, true}) {
    Mirror weight = Weight(kOut, kIn, transposable, /*integers=*/false);
    Mirror other = Weight(kOut, kIn, transposable, /*integers=*/true);
    const auto prepared = gpu().PrepareTwoFour(weight.gpu(), KindOf(transposable));
    ASSERT_TRUE(prepared);
    prepared->Update(stream());
    const auto run = [&](const Case& c) {
      Operands operands(c, weight, /*integers=*/false, device());
      prepared->MatMul(operands.Args(/*gpu=*/true), stream());
      stream().Synchronize();
      cpu().MatMul(operands.Args(/*gpu=*/false), cpu_stream());
      operands.Expect(/*integers=*/false, c.Name());
    };
    for (int round = 0; round < 3; ++round) {
      if (round == 2) {
        Replace(weight, other);
        prepared->Update(stream());
      }
      run({.out = kOut, .in = kIn, .tokens = kTokens, .bias = true});
      run({.out = kOut, .in = kIn, .tokens = kTokens, .transposed = true});
      run({.out = kOut, .in = kIn, .tokens = 77});
    }
  }
}

// A recorded step compresses and multiplies what the weight holds when it is submitted.
TEST_F(GpuTwoFourTest, RecordingsReadTheWeightAsItIs) {
  Mirror weight = Weight(256, 512, /*transposable=*/true, /*integers=*/false);
  std::vector<double> values = weight.Download();
  for (double& value : values) value *= -3;
  Mirror other = Mirror::Of(256, 512, DType::kBF16, values);
  const Case c = {.out = 256, .in = 512, .tokens = 1024, .bias = true};
  Operands operands(c, weight, /*integers=*/false, device());
  const MatMulArgs args = operands.Args(/*gpu=*/true);
  const auto call = TwoFourCallOf(args, TwoFourKind::kRows);
  ASSERT_TRUE(call);
  const auto compressed = Compressed(call->side, weight);
  const auto product = TwoFourProduct::Make(*call, kDefault, plans_->context());
  ASSERT_TRUE(compressed && product);
  ASSERT_TRUE(plans_->Run(*product, *call, args, *compressed, stream()));
  const auto recording = device().Record(
      [&] {
        compressed->Compress(weight.gpu().data(), plans_->workspace(), NativeStream(stream()));
        EXPECT_TRUE(plans_->Run(*product, *call, args, *compressed, stream()));
      },
      stream());
  ASSERT_TRUE(recording) << "no graph can be made of it";
  Replace(weight, other);
  recording->Submit(stream());
  stream().Synchronize();
  cpu().MatMul(operands.Args(/*gpu=*/false), cpu_stream());
  operands.Expect(/*integers=*/false, c.Name() + ", recorded");
}

TEST_F(GpuTwoFourTest, LeavesToDenseWhatItCannot) {
  Mirror weight = Weight(48, 32, /*transposable=*/true, /*integers=*/true);
  const auto call = [&](const Case& c, TwoFourKind kind) {
    return TwoFourCallOf(Operands(c, weight, /*integers=*/true, device()).Args(/*gpu=*/true), kind);
  };
  const Case forward = {.out = 48, .in = 32, .tokens = 1024};
  Case back = forward, few = forward, odd = forward, pitched = forward;
  back.transposed = true;
  few.tokens = 1016;
  odd.tokens = 1025;
  pitched.gap = 4;
  EXPECT_TRUE(call(forward, TwoFourKind::kRows));
  EXPECT_FALSE(call(back, TwoFourKind::kRows));
  EXPECT_TRUE(call(back, TwoFourKind::kRowsAndColumns));
  EXPECT_FALSE(call(few, TwoFourKind::kRows));
  EXPECT_FALSE(call(odd, TwoFourKind::kRows));
  EXPECT_FALSE(call(pitched, TwoFourKind::kRows));
  // A side that cuSPARSELt does not compress.
  Mirror narrow = Weight(24, 32, /*transposable=*/true, /*integers=*/true);
  EXPECT_EQ(gpu().PrepareTwoFour(narrow.gpu(), TwoFourKind::kRows), nullptr);
  EXPECT_EQ(gpu().PrepareTwoFour(weight.gpu(), TwoFourKind::kNone), nullptr);
  gpu().set_deterministic(true);
  EXPECT_EQ(gpu().PrepareTwoFour(weight.gpu(), TwoFourKind::kRows), nullptr);
  EXPECT_EQ(gpu().TwoFourBytes(48, 32, TwoFourKind::kRows), 0);
  gpu().set_deterministic(false);
}

}  // namespace
}  // namespace filigree
