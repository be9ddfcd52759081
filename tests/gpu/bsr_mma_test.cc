// The mma.sync products on blocked weights against the CPU backend in double precision: every pair
// of block sides, every kind of layout, edge blocks, rows with gaps between them.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/sddmm_bsr_mma.h"
#include "kernels/cuda/spmm_bsr_mma.h"
#include "tests/gpu/block_layouts.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

constexpr int kSides[] = {16, 32, 64, 128};

template <typename Indices>
Mirror DeviceIndices(const Indices& indices) {
  const std::vector<double> values(indices.begin(), indices.end());
  return Mirror::Of(1, static_cast<int64_t>(values.size()), DType::kI32, values);
}
const int32_t* Pointer(const Mirror& mirror) { return mirror.gpu().As<int32_t>(); }
const __nv_bfloat16* Bf16(const Mirror& mirror) {
  return static_cast<const __nv_bfloat16*>(mirror.gpu().data());
}

struct Problem {
  std::string name;
  SparseLayout layout;
  int64_t tokens;
  bool integers;
  int64_t gap = 0;  // between the rows of x, dy, y and dx

  BlockShape block() const { return {layout.block_out(), layout.block_in()}; }
};

class BsrMmaTest : public GpuTest {
 protected:
  static Mirror Draw(const Problem& p, int64_t rows, int64_t cols, uint64_t seed, int64_t gap) {
    return p.integers ? Mirror::Integers(rows, cols, DType::kBF16, seed, gap)
                      : Mirror::Random(rows, cols, DType::kBF16, seed, 1, gap);
  }

  // Stored values; padding is zero, as the format promises.
  static Mirror DrawValues(const Problem& p) {
    const std::vector<int64_t> cells = p.layout.LogicalIndices();
    std::vector<double> values = Draw(p, 1, static_cast<int64_t>(cells.size()), 1, 0).Reference();
    for (size_t i = 0; i < cells.size(); ++i) {
      if (cells[i] < 0) values[i] = 0;
    }
    return Mirror::Of(1, static_cast<int64_t>(values.size()), DType::kBF16, values);
  }

  // Sums of integers are exact, so the one rounding is all that may happen to them.
  static void Expect(const Problem& p, Mirror& out, const std::string& what) {
    if (!p.integers) return ExpectParity(out, p.name + ": " + what);
    const std::vector<double> found = out.Download(), expected = out.Reference();
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto sum = static_cast<float>(expected[i]);
      const float rounded = out.dtype() == DType::kBF16 ? static_cast<float>(BFloat16(sum)) : sum;
      ASSERT_EQ(found[i], rounded) << p.name << ": " << what << ", element " << i;
    }
    EXPECT_TRUE(out.GapsAreIntact()) << p.name << ": " << what << " wrote between its rows";
  }

  static void CheckForward(const Problem& p, bool with_bias) {
    const SparseLayout& layout = p.layout;
    Mirror values = DrawValues(p), bias = Draw(p, 1, layout.out(), 2, 0);
    Mirror x = Draw(p, p.tokens, layout.in(), 3, p.gap);
    Mirror y = Mirror::Output(p.tokens, layout.out(), DType::kBF16, p.gap);
    const auto prepared = cpu().PrepareLayout(layout);
    cpu().Spmm({.weight = prepared.get(),
                .values = values.cpu_flat(),
                .x = x.cpu(),
                .y = y.cpu(),
                .bias = with_bias ? ConstTensorView(bias.cpu_flat()) : ConstTensorView()},
               cpu_stream());
    const Mirror offsets = DeviceIndices(layout.row_offsets()),
                 columns = DeviceIndices(layout.columns());
    LaunchSpmmBsrMma({.block = p.block(),
                      .tokens = p.tokens,
                      .out_features = layout.out(),
                      .in_features = layout.in()},
                     {.values = Bf16(values),
                      .offsets = Pointer(offsets),
                      .panels = Pointer(columns),
                      .input = Bf16(x),
                      .input_stride = layout.in() + p.gap,
                      .output = const_cast<__nv_bfloat16*>(Bf16(y)),
                      .output_stride = layout.out() + p.gap,
                      .bias = with_bias ? Bf16(bias) : nullptr},
                     NativeStream(stream()));
    stream().Synchronize();
    Expect(p, y, with_bias ? "y with bias" : "y");
  }

  static void CheckInputGrad(const Problem& p, bool accumulate) {
    const SparseLayout& layout = p.layout;
    Mirror values = DrawValues(p), dy = Draw(p, p.tokens, layout.out(), 4, p.gap);
    Mirror dx = accumulate ? Draw(p, p.tokens, layout.in(), 5, p.gap)
                           : Mirror::Output(p.tokens, layout.in(), DType::kBF16, p.gap);
    const auto prepared = cpu().PrepareLayout(layout);
    cpu().SpmmTransposed({.weight = prepared.get(),
                          .values = values.cpu_flat(),
                          .dy = dy.cpu(),
                          .dx = dx.cpu(),
                          .accumulate = accumulate},
                         cpu_stream());
    const SparseLayout::Transposed transposed = layout.Transpose();
    const Mirror offsets = DeviceIndices(transposed.column_offsets),
                 rows = DeviceIndices(transposed.rows), slots = DeviceIndices(transposed.slots);
    LaunchSpmmBsrMma({.block = p.block(),
                      .transposed = true,
                      .tokens = p.tokens,
                      .out_features = layout.out(),
                      .in_features = layout.in()},
                     {.values = Bf16(values),
                      .offsets = Pointer(offsets),
                      .panels = Pointer(rows),
                      .slots = Pointer(slots),
                      .input = Bf16(dy),
                      .input_stride = layout.out() + p.gap,
                      .output = const_cast<__nv_bfloat16*>(Bf16(dx)),
                      .output_stride = layout.in() + p.gap,
                      .addend = accumulate ? Bf16(dx) : nullptr,
                      .addend_stride = layout.in() + p.gap},
                     NativeStream(stream()));
    stream().Synchronize();
    Expect(p, dx, accumulate ? "accumulated dx" : "dx");
  }

  static void CheckWeightGrad(const Problem& p) {
    const SparseLayout& layout = p.layout;
    Mirror dy = Draw(p, p.tokens, layout.out(), 6, p.gap);
    Mirror x = Draw(p, p.tokens, layout.in(), 7, p.gap);
    std::vector<double> sums(layout.stored_count(), 0.0);
    const auto prepared = cpu().PrepareLayout(layout);
    cpu().Sddmm({.weight = prepared.get(),
                 .dy = dy.cpu(),
                 .x = x.cpu(),
                 .dvalues = TensorView(sums.data(), DType::kF64, {layout.stored_count()})},
                cpu_stream());
    // Few and many multiprocessors, so that tokens are summed in one range and in several.
    for (const int multiprocessors : {1, 132}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        CheckGradient(p, dy, x, sums, dtype, false, multiprocessors);
        CheckGradient(p, dy, x, sums, dtype, true, multiprocessors);
      }
    }
  }

  static void CheckGradient(const Problem& p, const Mirror& dy, const Mirror& x,
                            const std::vector<double>& sums, DType dtype, bool accumulate,
                            int multiprocessors) {
    const SparseLayout& layout = p.layout;
    const int64_t stored = layout.stored_count();
    const std::vector<double> old = Draw(p, 1, stored, 8, 0).Reference();
    Mirror gradient =
        accumulate ? Mirror::Of(1, stored, dtype, old) : Mirror::Output(1, stored, dtype);
    auto* expected = gradient.cpu().As<double>();
    for (int64_t i = 0; i < stored; ++i) expected[i] = sums[i] + (accumulate ? old[i] : 0);
    const SddmmMmaDesc desc{.block = p.block(),
                            .tokens = p.tokens,
                            .out_features = layout.out(),
                            .in_features = layout.in(),
                            .block_count = layout.block_count(),
                            .gradient_dtype = dtype};
    const Mirror offsets = DeviceIndices(layout.row_offsets()),
                 columns = DeviceIndices(layout.columns());
    const size_t bytes = SddmmMmaWorkspaceBytes(desc, multiprocessors);
    const DeviceBuffer workspace = device().Allocate(std::max<size_t>(bytes, 16), "test");
    LaunchSddmmBsrMma(desc, multiprocessors,
                      {.row_offsets = Pointer(offsets),
                       .columns = Pointer(columns),
                       .output_grad = Bf16(dy),
                       .output_grad_stride = layout.out() + p.gap,
                       .input = Bf16(x),
                       .input_stride = layout.in() + p.gap,
                       .gradient = gradient.gpu().data(),
                       .accumulate = accumulate,
                       .workspace = static_cast<std::byte*>(workspace.data())},
                      NativeStream(stream()));
    stream().Synchronize();
    Expect(p, gradient,
           std::string(accumulate ? "accumulated dw, " : "dw, ") + std::string(NameOf(dtype)) +
               ", ranges of tokens: " + std::to_string(SddmmMmaSplits(desc, multiprocessors)));
  }

  static void CheckAll(const Problem& p) {
    CheckForward(p, false);
    CheckForward(p, true);
    CheckInputGrad(p, false);
    CheckInputGrad(p, true);
    CheckWeightGrad(p);
  }

  static Problem MakeProblem(Pattern pattern, BlockShape block, int64_t out, int64_t in,
                             int64_t tokens, bool integers, int64_t gap) {
    const std::string name = std::string(kPatternNames[static_cast<int>(pattern)]) + " " +
                             std::to_string(block.rows) + "x" + std::to_string(block.cols) +
                             " in " + std::to_string(out) + "x" + std::to_string(in) + ", " +
                             std::to_string(tokens) + " tokens";
    return {name, MakeLayout(pattern, out, in, block.rows, block.cols), tokens, integers, gap};
  }
};

// Edge blocks keep 8 elements of their side, the least that the views allow, or all but 8.
TEST_F(BsrMmaTest, EveryBlockAndLayout) {
  for (const int rows : kSides) {
    for (const int cols : kSides) {
      for (const Pattern pattern : kPatterns) {
        const BlockShape block{rows, cols};
        CheckAll(MakeProblem(pattern, block, 4 * rows, 5 * cols, 300, true, 0));
        CheckAll(MakeProblem(pattern, block, 3 * rows + 8, 4 * cols - 8, 129, true, 8));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(BsrMmaTest, EveryTokenCount) {
  for (const int64_t tokens : {1, 7, 63, 64, 65, 1000, 16384}) {
    for (const BlockShape block :
         {BlockShape{16, 16}, {64, 64}, {128, 64}, {32, 128}, {128, 128}}) {
      CheckAll(MakeProblem(Pattern::kRandom, block, 168, 136, tokens, true, 16));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(BsrMmaTest, RandomValuesWithinRounding) {
  for (const int rows : kSides) {
    for (const int cols : kSides) {
      CheckAll(MakeProblem(Pattern::kRandom, {rows, cols}, 648, 904, 1000, false, 8));
    }
  }
}

}  // namespace
}  // namespace filigree
