// GELU's derivative in codes of a byte on the GPU: the operations, and the epilogues of products
// that make and read them. The reference is the CPU backend's derivative in double precision, of a
// result that nobody rounded.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/base/gelu_code.h"
#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// A matrix of codes on the GPU, its rows `gap` apart; what lies there must stay.
class Codes {
 public:
  Codes(CudaDevice& device, int64_t rows, int64_t cols, int64_t gap)
      : device_(device), rows_(rows), cols_(cols), stride_(cols + gap) {
    buffer_ = device.Allocate(rows * stride_, "test");
    Upload(std::vector<uint8_t>(rows * cols, 0));
  }
  TensorView view() const {
    return TensorView::Matrix(buffer_.data(), DType::kU8, rows_, cols_, stride_);
  }
  void Upload(const std::vector<uint8_t>& codes) {
    std::vector<uint8_t> bytes(rows_ * stride_, kGap);
    for (int64_t i = 0; i < rows_; ++i) {
      std::copy_n(codes.begin() + i * cols_, cols_, bytes.begin() + i * stride_);
    }
    Copy(Whole(buffer_.data()), Whole(bytes.data()));
  }
  std::vector<uint8_t> Download() const {
    std::vector<uint8_t> bytes(rows_ * stride_), codes;
    Copy(Whole(bytes.data()), Whole(buffer_.data()));
    for (int64_t i = 0; i < rows_ * stride_; ++i) {
      if (i % stride_ < cols_) {
        codes.push_back(bytes[i]);
      } else {
        EXPECT_EQ(bytes[i], kGap) << "wrote between rows";
      }
    }
    return codes;
  }

 private:
  static constexpr uint8_t kGap = 0x5A;

  TensorView Whole(void* data) const { return TensorView(data, DType::kU8, {rows_ * stride_}); }
  void Copy(TensorView to, ConstTensorView from) const {
    const auto stream = device_.NewStream();
    device_.CopyAsync(to, from, *stream);
    stream->Synchronize();
  }

  CudaDevice& device_;
  int64_t rows_, cols_, stride_;
  DeviceBuffer buffer_;
};

class GpuGeluCodeTest : public GpuTest {
 protected:
  // gelu'(x) of the reference.
  static std::vector<double> Derivatives(const std::vector<double>& x) {
    std::vector<double> ones(x.size(), 1), derivative(x.size());
    const auto count = static_cast<int64_t>(x.size());
    cpu().GeluBackward({.x = ConstTensorView(x.data(), DType::kF64, {1, count}),
                        .dy = ConstTensorView(ones.data(), DType::kF64, {1, count}),
                        .dx = TensorView(derivative.data(), DType::kF64, {1, count})},
                       cpu_stream());
    return derivative;
  }

  // Half a step, and what the derivative itself may be off by: half of fast tanh's 2^-11 times the
  // slope of what is made of it, 20 at 4, beyond which tanh is 1; and `rounding` of x, by which the
  // derivative moves at most 0.8 as far.
  static void ExpectCodesOf(const std::vector<double>& x, const std::vector<uint8_t>& codes,
                            double rounding, const std::string& what) {
    const std::vector<double> expected = Derivatives(x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double limit = 0.5 / kGeluCodesPerUnit + 5e-3 + 0.8 * rounding * (std::abs(x[i]) + 0.1);
      ASSERT_NEAR(DecodeGeluDerivative(codes[i]), expected[i], limit)
          << what << ": element " << i << ", gelu' of " << x[i];
    }
  }
};

TEST_F(GpuGeluCodeTest, Operations) {
  for (int64_t cols : {64, 37}) {
    for (int64_t gap : {0, 16, 3}) {
      const int64_t rows = 150;
      Mirror x = Mirror::Random(rows, cols, DType::kBF16, 1, 2, gap);
      Mirror y = Mirror::Output(rows, cols, DType::kBF16, gap);
      Codes codes(device(), rows, cols, gap);
      gpu().Gelu({.x = x.gpu(), .y = y.gpu(), .codes = codes.view()}, stream());
      stream().Synchronize();
      cpu().Gelu({.x = x.cpu(), .y = y.cpu()}, cpu_stream());
      ExpectParity(y, "gelu beside codes");
      const std::vector<uint8_t> found = codes.Download();
      ExpectCodesOf(x.Reference(), found, 0, "operation");

      // What the codes stand for, against the reference with the same codes.
      Mirror dy = Mirror::Random(rows, cols, DType::kBF16, 2, 1, gap);
      const ConstTensorView same(found.data(), DType::kU8, {rows, cols});
      gpu().GeluBackward({.x = codes.view(), .dy = dy.gpu(), .dx = dy.gpu()}, stream());
      stream().Synchronize();
      cpu().GeluBackward({.x = same, .dy = dy.cpu(), .dx = dy.cpu()}, cpu_stream());
      ExpectParity(dy, "times what codes stand for", 1e-5);
    }
  }
}

// Far from zero the derivative is 0 or 1, by all ways to it; fast tanh must not show.
TEST_F(GpuGeluCodeTest, ArgumentsOfAnySize) {
  constexpr int64_t kSide = 128, kTokens = 256;
  const SparseLayout layout = RandomUniformBlocks(kSide, kSide, 128, 128, 1, 1, "one block");
  const auto weight = gpu().PrepareLayout(layout);
  std::vector<double> identity(kSide * kSide), arguments(kTokens * kSide);
  for (int64_t i = 0; i < kSide; ++i) identity[i * kSide + i] = 1;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const double size = std::exp2(static_cast<double>(i / 2 % 512) / 512 * 24 - 12);  // to 4096
    arguments[i] = i % 2 == 0 ? size : -size;
  }
  Mirror values = Mirror::Of(1, kSide * kSide, DType::kBF16, identity);
  Mirror x = Mirror::Of(kTokens, kSide, DType::kBF16, arguments);
  Mirror y = Mirror::Output(kTokens, kSide, DType::kBF16);
  Codes codes(device(), kTokens, kSide, 0), apart(device(), kTokens, kSide, 0);
  gpu().Spmm({.weight = weight.get(),
              .values = values.gpu_flat(),
              .x = x.gpu(),
              .y = y.gpu(),
              .epilogue = {.pre_activation = codes.view()}},
             stream());
  stream().Synchronize();
  cpu().Gelu({.x = x.cpu(), .y = y.cpu()}, cpu_stream());
  ExpectParity(y, "gelu");
  ExpectCodesOf(x.Reference(), codes.Download(), 0, "epilogue");
  gpu().Gelu({.x = x.gpu(), .y = y.gpu(), .codes = apart.view()}, stream());
  stream().Synchronize();
  ExpectCodesOf(x.Reference(), apart.Download(), 0, "operation");
}

struct Case {
  int64_t out, in;
  int block_out, block_in;
  double density;
  int64_t tokens;
  int64_t gap = 0;
};
const Case kCases[] = {
    {512, 384, 128, 128, 0.4, 512},   {512, 384, 128, 128, 0.4, 300, 16},
    {256, 2048, 128, 128, 0.3, 2600},  // several tiles for each multiprocessor
    {2048, 256, 128, 128, 0.3, 2600},  {512, 384, 128, 64, 0.4, 300},
    {256, 384, 64, 128, 0.4, 129},     {256, 192, 64, 64, 0.3, 1023, 16},
    {2048, 256, 64, 64, 0.3, 2600},    {256, 2048, 64, 64, 0.3, 2600},
    {1024, 1024, 128, 128, 0.03, 256},  // empty rows and columns
    {512, 384, 128, 128, 0.4, 300, 8},  // rows of codes that the copy engine does not take
    {512, 384, 128, 128, 0.4, 40},      // too few tokens for the Hopper kernels
    {128, 160, 32, 32, 0.5, 200},      {100, 70, 32, 32, 0.6, 33, 3},
};

// What the product into GELU and the gradient that comes back to it need.
struct Products {
  explicit Products(const Case& c, bool integers)
      : layout(RandomUniformBlocks(c.out, c.in, c.block_out, c.block_in, c.density, 3, "codes")),
        values(integers ? Mirror::Integers(1, layout.stored_count(), DType::kBF16, 1)
                        : Mirror::Random(1, layout.stored_count(), DType::kBF16, 1, 0.1)),
        bias(Mirror::Random(1, c.out, DType::kBF16, 2)),
        x(integers ? Mirror::Integers(c.tokens, c.in, DType::kBF16, 3, c.gap)
                   : Mirror::Random(c.tokens, c.in, DType::kBF16, 3, 1, c.gap)) {}

  SparseLayout layout;
  Mirror values, bias, x;
};

TEST_F(GpuGeluCodeTest, ProductsMakeThem) {
  for (const Case& c : kCases) {
    for (bool integers : {false, true}) {
      Products p(c, integers);
      const auto there = gpu().PrepareLayout(p.layout), here = cpu().PrepareLayout(p.layout);
      Mirror y = Mirror::Output(c.tokens, c.out, DType::kBF16, c.gap);
      Mirror result = Mirror::Output(c.tokens, c.out, DType::kBF16);
      Codes codes(device(), c.tokens, c.out, c.gap);
      std::optional<std::vector<uint8_t>> first;
      for (int run = 0; run < 2; ++run) {
        gpu().Spmm({.weight = there.get(),
                    .values = p.values.gpu_flat(),
                    .x = p.x.gpu(),
                    .y = y.gpu(),
                    .bias = p.bias.gpu_flat(),
                    .epilogue = {.pre_activation = codes.view()}},
                   stream());
        stream().Synchronize();
        if (!first) first = codes.Download();
      }
      cpu().Spmm({.weight = here.get(),
                  .values = p.values.cpu_flat(),
                  .x = p.x.cpu(),
                  .y = y.cpu(),
                  .bias = p.bias.cpu_flat(),
                  .epilogue = {.pre_activation = result.cpu()}},
                 cpu_stream());
      const std::string what = std::to_string(c.out) + "x" + std::to_string(c.in) + ", " +
                               std::to_string(c.tokens) + " tokens, gap " + std::to_string(c.gap);
      // Gelu of a result that was rounded first, where that is an operation of its own.
      ExpectParity(y, what, 2e-3);
      EXPECT_EQ(*first, codes.Download()) << what << ": not repeatable";
      ExpectCodesOf(result.Reference(), *first, 1.0 / 256, what);
    }
  }
}

// The gradient with codes of the exact derivative: against the reference with these codes, where only
// rounding is left, and against the exact derivative, where the quantiser's error is seen.
TEST_F(GpuGeluCodeTest, ProductsMultiplyByThem) {
  for (const Case& c : kCases) {
    Products p(c, /*integers=*/false);
    const auto there = gpu().PrepareLayout(p.layout), here = cpu().PrepareLayout(p.layout);
    Mirror dy = Mirror::Random(c.tokens, c.out, DType::kBF16, 4, 1, c.gap);
    Mirror argument = Mirror::Random(c.tokens, c.in, DType::kBF16, 5);
    std::vector<uint8_t> encoded;
    for (double d : Derivatives(argument.Reference())) encoded.push_back(EncodeGeluDerivative(d));
    Codes codes(device(), c.tokens, c.in, c.gap);
    codes.Upload(encoded);
    const std::string what = std::to_string(c.out) + "x" + std::to_string(c.in) + ", " +
                             std::to_string(c.tokens) + " tokens, gap " + std::to_string(c.gap);
    const ConstTensorView same(encoded.data(), DType::kU8, {c.tokens, c.in});
    for (const bool exact : {false, true}) {
      Mirror dx = Mirror::Output(c.tokens, c.in, DType::kBF16, c.gap);
      Mirror sums = Mirror::Output(1, c.in, DType::kF32);
      gpu().SpmmTransposed({.weight = there.get(),
                            .values = p.values.gpu_flat(),
                            .dy = dy.gpu(),
                            .dx = dx.gpu(),
                            .epilogue = {.gelu_input = codes.view(),
                                         .column_sums = sums.gpu_flat(),
                                         .accumulate_sums = false}},
                           stream());
      stream().Synchronize();
      const ConstTensorView derivative = exact ? ConstTensorView(argument.cpu()) : same;
      cpu().SpmmTransposed({.weight = here.get(),
                            .values = p.values.cpu_flat(),
                            .dy = dy.cpu(),
                            .dx = dx.cpu(),
                            .epilogue = {.gelu_input = derivative}},
                           cpu_stream());
      ExpectParity(dx, what + (exact ? ", exact derivative" : ""), 1e-3);
      ExpectColumnSums(sums, dx, c.tokens, c.in, /*added=*/false, what + ", sums");
    }
  }
}

}  // namespace
}  // namespace filigree
