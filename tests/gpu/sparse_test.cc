#include <limits>

#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// Stored values of a layout; what pads edge blocks is `padding`.
Mirror Stored(const SparseLayout& layout, DType dtype, uint64_t seed, double padding,
              bool integers = false) {
  const int64_t count = layout.stored_count();
  std::vector<double> values = (integers ? Mirror::Integers(1, count, dtype, seed)
                                         : Mirror::Random(1, count, dtype, seed, 0.1))
                                   .Reference();
  const std::vector<int64_t> logical = layout.LogicalIndices();
  for (int64_t i = 0; i < count; ++i) {
    if (logical[i] < 0) values[i] = padding;
  }
  return Mirror::Of(1, count, dtype, values);
}

std::string Describe(const SparseLayout& layout) {
  return std::string(NameOf(layout.kind())) + " " + std::to_string(layout.out()) + "x" +
         std::to_string(layout.in()) + ", blocks of " + std::to_string(layout.block_out()) + "x" +
         std::to_string(layout.block_in()) + ", " + std::to_string(layout.stored_count()) +
         " stored";
}

// The first two of every four columns in even rows, the last two in odd ones.
SparseLayout TwoOfFour(int64_t out, int64_t in) {
  std::vector<int32_t> columns;
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t j = 0; j < in; j += 4) {
      columns.push_back(static_cast<int32_t>(j + i % 2 * 2));
      columns.push_back(static_cast<int32_t>(j + i % 2 * 2 + 1));
    }
  }
  return SparseLayout::NM(out, in, 2, 4, std::move(columns)).value();
}

std::vector<SparseLayout> AnyLayouts() {
  return {SparseLayout::Dense(33, 40),
          SparseLayout::Dense(5, 7),
          SparseLayout::Dense(19, 37, 40),
          TwoOfFour(17, 64),
          RandomUnstructured(64, 128, 0.25, 1, "a"),
          RandomUnstructured(37, 61, 0.1, 1, "b"),
          RandomUnstructured(3, 20000, 0.3, 1, "several tiles of a row"),
          RandomUnstructured(4, 70000, 0.05, 1, "32-bit columns"),
          RandomUniformBlocks(64, 96, 32, 32, 0.5, 1, "c"),
          RandomUniformBlocks(100, 70, 32, 32, 0.6, 1, "edges"),
          RandomUniformBlocks(130, 9000, 64, 128, 0.3, 1, "several tiles, edges"),
          RandomUniformBlocks(23, 31, 3, 5, 0.4, 1, "odd blocks"),
          RandomUniformBlocks(20, 8200, 4, 24, 0.4, 1, "blocks across tiles"),
          RandomUniformBlocks(64, 64, 32, 32, 0.0, 1, "nothing stored"),
          RandomUniformBlocks(256, 256, 128, 64, 0.2, 1, "empty rows")};
}

class GpuSparseTest : public GpuTest {};

TEST_F(GpuSparseTest, ScatterWritesEveryDenseElement) {
  for (const SparseLayout& layout : AnyLayouts()) {
    // The last: rows of any width that begin at multiples of 8.
    for (int64_t gap : {int64_t{0}, int64_t{8}, int64_t{3}, 8 - layout.in() % 8}) {
      const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
      Mirror values = Stored(layout, DType::kBF16, 1, std::numeric_limits<double>::quiet_NaN());
      Mirror dense = Mirror::Output(layout.out(), layout.in(), DType::kBF16, gap);
      gpu().ScatterStored(
          {.weight = there.get(), .values = values.gpu_flat(), .dense = dense.gpu()}, stream());
      stream().Synchronize();
      cpu().ScatterStored({.weight = here.get(), .values = values.cpu_flat(), .dense = dense.cpu()},
                          cpu_stream());
      ExpectEqual(dense, Describe(layout));
    }
  }
}

TEST_F(GpuSparseTest, GatherSelectsTheStoredCells) {
  for (const SparseLayout& layout : AnyLayouts()) {
    for (DType from : {DType::kF32, DType::kBF16}) {
      for (DType to : {DType::kF32, DType::kBF16}) {
        for (bool accumulate : {false, true}) {
          for (int64_t gap : {0, 3}) {
            const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
            Mirror dense = Mirror::Integers(layout.out(), layout.in(), from, 1, gap);
            Mirror values = accumulate ? Stored(layout, to, 2, 0, /*integers=*/true)
                                       : Mirror::Output(1, layout.stored_count(), to);
            gpu().GatherStored({.weight = there.get(),
                                .dense = dense.gpu(),
                                .values = values.gpu_flat(),
                                .accumulate = accumulate},
                               stream());
            stream().Synchronize();
            cpu().GatherStored({.weight = here.get(),
                                .dense = dense.cpu(),
                                .values = values.cpu_flat(),
                                .accumulate = accumulate},
                               cpu_stream());
            ExpectEqual(values, Describe(layout));
          }
        }
      }
    }
  }
}

struct ProductCase {
  int64_t out, in;
  int block_out, block_in;
  double density;
  int64_t tokens;
  SparseLayout layout() const {
    return RandomUniformBlocks(out, in, block_out, block_in, density, 3, "product");
  }
};
const ProductCase kProducts[] = {
    {512, 384, 128, 128, 0.4, 512},  // Hopper: whole blocks, whole tiles
    {512, 384, 128, 64, 0.4, 300},   // rectangles, a ragged last tile
    {256, 384, 64, 128, 0.4, 129},     {256, 192, 64, 64, 0.3, 1023},
    {1024, 1024, 128, 128, 0.03, 256},                                 // empty rows and columns
    {512, 384, 128, 128, 1.0, 640},    {512, 384, 128, 128, 0.4, 40},  // few tokens
    {256, 256, 64, 64, 0.0, 256},                                      // nothing stored
    {128, 160, 32, 32, 0.5, 200},      {128, 160, 16, 16, 0.3, 77},
    {136, 168, 32, 64, 0.5, 130},  // edges
    {100, 70, 32, 32, 0.6, 33},    // odd widths
    {23, 31, 3, 5, 0.4, 12},
};

enum class Epilogue { kNone, kResidual, kGelu, kGeluBackward, kSwiGluBackward, kSwiGlu };

class GpuProductTest : public GpuSparseTest {
 protected:
  struct Options {
    bool bias = false, accumulate = false, integers = false, sums = false;
    bool linear = false;  // of SwiGLU
    Epilogue epilogue = Epilogue::kNone;
    int64_t gap = 0;
  };

  static Mirror Draw(const Options& o, int64_t rows, int64_t cols, uint64_t seed) {
    return o.integers ? Mirror::Integers(rows, cols, DType::kBF16, seed, o.gap)
                      : Mirror::Random(rows, cols, DType::kBF16, seed, 1, o.gap);
  }

  static void Run(const ProductCase& c, bool transposed, const Options& o) {
    const SparseLayout layout = c.layout();
    const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
    Mirror values = Stored(layout, DType::kBF16, 1, 0, o.integers);
    const int64_t width = transposed ? c.in : c.out;
    Mirror in = Draw(o, c.tokens, transposed ? c.out : c.in, 2);
    Mirror out = o.accumulate ? Draw(o, c.tokens, width, 3)
                              : Mirror::Output(c.tokens, width, DType::kBF16, o.gap);
    Mirror operand = Draw(o, c.tokens, width, 4);
    Mirror up = Draw(o, c.tokens, width, 7);
    const bool swiglu = o.epilogue == Epilogue::kSwiGlu;
    if (swiglu && width % 2 != 0) return;
    Mirror beside = Mirror::Output(c.tokens, swiglu ? width / 2 : width, DType::kBF16, o.gap);
    Mirror bias = Mirror::Integers(1, width, DType::kBF16, 5);
    Mirror sums = o.accumulate ? Mirror::Random(1, width, DType::kF32, 6)
                               : Mirror::Output(1, width, DType::kF32);
    const auto launch = [&](bool on_gpu) {
      const auto view = [&](Mirror& m) { return on_gpu ? m.gpu() : m.cpu(); };
      const auto flat = [&](Mirror& m) { return on_gpu ? m.gpu_flat() : m.cpu_flat(); };
      ProductEpilogue epilogue;
      if (o.epilogue == Epilogue::kResidual) epilogue.residual = view(operand);
      if (o.epilogue == Epilogue::kGelu) epilogue.pre_activation = view(beside);
      if (o.epilogue == Epilogue::kGeluBackward) epilogue.gelu_input = view(operand);
      if (o.epilogue == Epilogue::kSwiGluBackward) {
        epilogue.swiglu = {view(operand), view(up), view(beside), o.linear};
      }
      if (swiglu) epilogue.swiglu_output = {view(beside), o.linear};
      if (o.sums && on_gpu) {
        epilogue.column_sums = sums.gpu_flat();
        epilogue.accumulate_sums = o.accumulate;
      }
      Backend& backend = on_gpu ? static_cast<Backend&>(gpu()) : cpu();
      Stream& queue = on_gpu ? stream() : cpu_stream();
      const PreparedLayout* weight = on_gpu ? there.get() : here.get();
      if (transposed) {
        backend.SpmmTransposed({.weight = weight,
                                .values = flat(values),
                                .dy = view(in),
                                .dx = view(out),
                                .accumulate = o.accumulate,
                                .epilogue = epilogue},
                               queue);
      } else {
        backend.Spmm({.weight = weight,
                      .values = flat(values),
                      .x = view(in),
                      .y = view(out),
                      .bias = o.bias ? ConstTensorView(flat(bias)) : ConstTensorView(),
                      .epilogue = epilogue},
                     queue);
      }
      queue.Synchronize();
    };
    launch(true);
    launch(false);
    const std::string what = Describe(layout) + (transposed ? " transposed, " : ", ") +
                             std::to_string(c.tokens) + " tokens, gap " + std::to_string(o.gap);
    ExpectParity(out, what, o.integers ? 0 : 1e-3);
    if (o.epilogue == Epilogue::kGelu) ExpectParity(beside, what + ", before gelu", 1e-3);
    if (o.epilogue == Epilogue::kSwiGluBackward) {
      ExpectParity(beside, what + ", gradient of up", 1e-3);
    }
    // Of gate and up as they are stored, rounded: two more roundings.
    if (swiglu) ExpectParity(beside, what + ", SwiGLU", 2e-3);
    if (o.sums) ExpectColumnSums(sums, out, c.tokens, width, o.accumulate, what + ", sums");
  }
};

TEST_F(GpuProductTest, IntegersAreRoundedOnceAtMost) {
  for (const ProductCase& c : kProducts) {
    for (bool transposed : {false, true}) Run(c, transposed, {.integers = true});
  }
}

TEST_F(GpuProductTest, RandomOperandsAndStrides) {
  for (const ProductCase& c : kProducts) {
    for (bool transposed : {false, true}) {
      for (int64_t gap : {0, 8, 3}) Run(c, transposed, {.gap = gap});
    }
  }
}

TEST_F(GpuProductTest, BiasAndEpilogues) {
  for (const ProductCase& c : kProducts) {
    for (int64_t gap : {0, 8}) {
      Run(c, false, {.bias = true, .gap = gap});
      Run(c, false, {.epilogue = Epilogue::kResidual, .gap = gap});
      Run(c, false, {.bias = true, .epilogue = Epilogue::kResidual, .gap = gap});
      Run(c, false, {.bias = true, .epilogue = Epilogue::kGelu, .gap = gap});
      Run(c, true, {.accumulate = true, .gap = gap});
      Run(c, true, {.epilogue = Epilogue::kGeluBackward, .gap = gap});
      Run(c, true, {.accumulate = true, .epilogue = Epilogue::kGeluBackward, .gap = gap});
      Run(c, true, {.sums = true, .epilogue = Epilogue::kGeluBackward, .gap = gap});
      Run(c, true,
          {.accumulate = true, .sums = true, .epilogue = Epilogue::kGeluBackward, .gap = gap});
      Run(c, true, {.sums = true, .gap = gap});
      Run(c, false, {.bias = true, .sums = true, .epilogue = Epilogue::kResidual, .gap = gap});
    }
  }
}

TEST_F(GpuProductTest, SwiGlu) {
  for (const ProductCase& c : kProducts) {
    for (int64_t gap : {0, 8, 3}) {
      Run(c, false, {.epilogue = Epilogue::kSwiGlu, .gap = gap});
      Run(c, false, {.bias = true, .epilogue = Epilogue::kSwiGlu, .gap = gap});
      Run(c, false, {.linear = true, .epilogue = Epilogue::kSwiGlu, .gap = gap});
      Run(c, false, {.bias = true, .sums = true, .epilogue = Epilogue::kSwiGlu, .gap = gap});
    }
  }
}

TEST_F(GpuProductTest, SwiGluGradients) {
  for (const ProductCase& c : kProducts) {
    for (int64_t gap : {0, 8, 3}) {
      Run(c, true, {.epilogue = Epilogue::kSwiGluBackward, .gap = gap});
      Run(c, true, {.linear = true, .epilogue = Epilogue::kSwiGluBackward, .gap = gap});
      Run(c, true, {.accumulate = true, .epilogue = Epilogue::kSwiGluBackward, .gap = gap});
      Run(c, true, {.sums = true, .epilogue = Epilogue::kSwiGluBackward, .gap = gap});
    }
  }
}

// gate and up are halves of one buffer, as are their gradients: the same bits at every call.
TEST_F(GpuProductTest, SwiGluGradientsInOneBufferRepeat) {
  constexpr int64_t kIn = 1408, kOut = 512, kTokens = 2600;
  const SparseLayout layout = RandomUniformBlocks(kOut, kIn, 128, 128, 0.3, 3, "product");
  const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
  Mirror values = Stored(layout, DType::kBF16, 1, 0);
  Mirror dy = Mirror::Random(kTokens, kOut, DType::kBF16, 2);
  Mirror both = Mirror::Random(kTokens, 2 * kIn, DType::kBF16, 3, 3);
  std::vector<Mirror> grads;
  for (int run = 0; run < 4; ++run) {
    grads.push_back(Mirror::Output(kTokens, 2 * kIn, DType::kBF16));
    gpu().SpmmTransposed(
        {.weight = there.get(),
         .values = values.gpu_flat(),
         .dy = dy.gpu(),
         .dx = grads[run].gpu().Cols(0, kIn),
         .epilogue = {.swiglu = {both.gpu().Cols(0, kIn), both.gpu().Cols(kIn, kIn),
                                 grads[run].gpu().Cols(kIn, kIn)}}},
        stream());
  }
  stream().Synchronize();
  cpu().SpmmTransposed({.weight = here.get(),
                        .values = values.cpu_flat(),
                        .dy = dy.cpu(),
                        .dx = grads[0].cpu().Cols(0, kIn),
                        .epilogue = {.swiglu = {both.cpu().Cols(0, kIn), both.cpu().Cols(kIn, kIn),
                                                grads[0].cpu().Cols(kIn, kIn)}}},
                       cpu_stream());
  ExpectParity(grads[0], "gradients of gate and up", 1e-3);
  for (int run = 1; run < 4; ++run) EXPECT_EQ(grads[run].Download(), grads[0].Download());
}

// Gate and up as joined weights, whose values lie apart: product and SwiGLU in one are the same
// bits as one after the other, at every call.
TEST_F(GpuProductTest, SwiGluOfJoinedWeightsIsThatOfThePass) {
  constexpr int64_t kIn = 512, kTokens = 2600, kApart = 4096;
  for (const auto& [half, block_out] : {std::pair<int64_t, int>{1408, 128}, {1088, 64}}) {
    std::vector<std::unique_ptr<PreparedLayout>> parts;
    std::vector<const PreparedLayout*> pointers;
    std::vector<int64_t> value_begin;
    int64_t extent = 0;
    for (const char* name : {"gate", "up"}) {
      const SparseLayout layout = RandomUniformBlocks(half, kIn, block_out, 64, 0.2, 3, name);
      parts.push_back(gpu().PrepareLayout(layout));
      pointers.push_back(parts.back().get());
      value_begin.push_back(extent == 0 ? 0 : extent + kApart);
      extent = value_begin.back() + layout.stored_count();
    }
    const auto joined = gpu().PrepareGroup(pointers, value_begin);
    if (!joined) GTEST_SKIP() << "this card does not join weights";
    Mirror values = Mirror::Random(1, extent, DType::kBF16, 1, 0.1);
    Mirror x = Mirror::Random(kTokens, kIn, DType::kBF16, 2);
    const auto multiply = [&](Mirror& y, const ProductEpilogue& epilogue) {
      gpu().Spmm({.weight = joined.get(),
                  .values = values.gpu_flat(),
                  .x = x.gpu(),
                  .y = y.gpu(),
                  .epilogue = epilogue},
                 stream());
    };
    Mirror both = Mirror::Output(kTokens, 2 * half, DType::kBF16);
    Mirror hidden = Mirror::Output(kTokens, half, DType::kBF16);
    multiply(both, {});
    gpu().SwiGlu({both.gpu().Cols(0, half), both.gpu().Cols(half, half), hidden.gpu()}, stream());
    stream().Synchronize();
    for (int run = 0; run < 4; ++run) {
      Mirror again = Mirror::Output(kTokens, 2 * half, DType::kBF16, 8);
      Mirror made = Mirror::Output(kTokens, half, DType::kBF16, 8);
      multiply(again, {.swiglu_output = {made.gpu()}});
      stream().Synchronize();
      EXPECT_EQ(again.Download(), both.Download()) << "run " << run;
      EXPECT_EQ(made.Download(), hidden.Download()) << "run " << run;
      EXPECT_TRUE(again.GapsAreIntact() && made.GapsAreIntact());
    }
  }
}

// Several tiles for each multiprocessor, some of them without blocks: what is brought in ahead
// belongs to the next tile.
TEST_F(GpuProductTest, EpiloguesOverManyTiles) {
  for (int block_out : {128, 64}) {
    for (int block_in : {128, 64}) {
      const ProductCase wide = {2048, 256, block_out, block_in, 0.3, 2600};
      Run(wide, false, {.integers = true});
      Run(wide, false, {.bias = true, .epilogue = Epilogue::kResidual});
      Run(wide, false, {.bias = true, .epilogue = Epilogue::kGelu});
      Run(wide, false, {.bias = true, .epilogue = Epilogue::kSwiGlu});
      const ProductCase deep = {256, 2048, block_out, block_in, 0.3, 2600};
      Run(deep, true, {.integers = true});
      Run(deep, true, {.sums = true, .epilogue = Epilogue::kGeluBackward});
      Run(deep, true, {.epilogue = Epilogue::kSwiGluBackward});
    }
  }
}

TEST_F(GpuProductTest, WeightGradients) {
  for (const ProductCase& c : kProducts) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (bool integers : {true, false}) {
        const SparseLayout layout = c.layout();
        const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
        Mirror x = Draw({.integers = integers, .gap = 8}, c.tokens, c.in, 1);
        Mirror dy = Draw({.integers = integers, .gap = 8}, c.tokens, c.out, 2);
        Mirror first = Stored(layout, dtype, 3, 0, integers);
        Mirror second = Stored(layout, dtype, 3, 0, integers);
        for (Mirror* out : {&first, &second}) {
          gpu().Sddmm(
              {.weight = there.get(), .dy = dy.gpu(), .x = x.gpu(), .dvalues = out->gpu_flat()},
              stream());
        }
        stream().Synchronize();
        cpu().Sddmm(
            {.weight = here.get(), .dy = dy.cpu(), .x = x.cpu(), .dvalues = first.cpu_flat()},
            cpu_stream());
        const std::string what = Describe(layout) + ", " + std::to_string(c.tokens) + " tokens";
        if (integers && dtype == DType::kF32) {
          ExpectEqual(first, what);
        } else {
          ExpectParity(first, what, 1e-4);
        }
        EXPECT_EQ(first.Download(), second.Download()) << what << ": not repeatable";
        Mirror over = Mirror::Output(1, layout.stored_count(), dtype);
        if (layout.stored_count() == 0) continue;
        gpu().Sddmm({.weight = there.get(),
                     .dy = dy.gpu(),
                     .x = x.gpu(),
                     .dvalues = over.gpu_flat(),
                     .accumulate = false},
                    stream());
        stream().Synchronize();
        cpu().Sddmm({.weight = here.get(),
                     .dy = dy.cpu(),
                     .x = x.cpu(),
                     .dvalues = over.cpu_flat(),
                     .accumulate = false},
                    cpu_stream());
        ExpectParity(over, what + ", overwritten", integers ? 0 : 1e-4);
      }
    }
  }
}

// Three weights joined, their values with gaps between them: the same bits as part by part.
TEST_F(GpuProductTest, JoinedWeightsEqualTheirParts) {
  constexpr int64_t kIn = 384, kTokens = 300, kGap = 512;
  constexpr int64_t kOuts[] = {256, 128, 512};
  std::vector<SparseLayout> layouts;
  std::vector<std::unique_ptr<PreparedLayout>> parts;
  std::vector<const PreparedLayout*> pointers;
  std::vector<int64_t> value_begin;
  int64_t extent = 0, out = 0;
  for (int64_t rows : kOuts) {
    layouts.push_back(RandomUniformBlocks(rows, kIn, 128, 64, 0.4, rows, "part"));
    parts.push_back(gpu().PrepareLayout(layouts.back()));
    pointers.push_back(parts.back().get());
    value_begin.push_back(extent);
    extent += layouts.back().stored_count() + kGap;
    out += rows;
  }
  extent -= kGap;
  const auto joined = gpu().PrepareGroup(pointers, value_begin);
  if (!joined) GTEST_SKIP() << "this card does not join weights";

  Mirror values = Mirror::Random(1, extent, DType::kBF16, 1, 0.1);
  for (int64_t tokens : {kTokens, int64_t{20}}) {
    Mirror x = Mirror::Random(tokens, kIn, DType::kBF16, 2);
    Mirror dy = Mirror::Random(tokens, out, DType::kBF16, 3);
    Mirror bias = Mirror::Random(1, out, DType::kBF16, 4);
    Mirror y = Mirror::Output(tokens, out, DType::kBF16),
           y_parts = Mirror::Output(tokens, out, DType::kBF16);
    Mirror grads = Mirror::Random(1, extent, DType::kF32, 5),
           grads_parts = Mirror::Random(1, extent, DType::kF32, 5);
    Mirror dx = Mirror::Output(tokens, kIn, DType::kBF16);
    gpu().Spmm({.weight = joined.get(),
                .values = values.gpu_flat(),
                .x = x.gpu(),
                .y = y.gpu(),
                .bias = bias.gpu_flat()},
               stream());
    gpu().SpmmTransposed(
        {.weight = joined.get(), .values = values.gpu_flat(), .dy = dy.gpu(), .dx = dx.gpu()},
        stream());
    gpu().Sddmm({.weight = joined.get(), .dy = dy.gpu(), .x = x.gpu(), .dvalues = grads.gpu_flat()},
                stream());
    int64_t row = 0;
    for (size_t i = 0; i < layouts.size(); ++i) {
      const int64_t count = layouts[i].stored_count(), rows = kOuts[i];
      const auto here = cpu().PrepareLayout(layouts[i]);
      gpu().Spmm({.weight = pointers[i],
                  .values = values.gpu_flat().Range(value_begin[i], count),
                  .x = x.gpu(),
                  .y = y_parts.gpu().Cols(row, rows),
                  .bias = bias.gpu_flat().Range(row, rows)},
                 stream());
      gpu().Sddmm({.weight = pointers[i],
                   .dy = dy.gpu().Cols(row, rows),
                   .x = x.gpu(),
                   .dvalues = grads_parts.gpu_flat().Range(value_begin[i], count)},
                  stream());
      cpu().SpmmTransposed({.weight = here.get(),
                            .values = values.cpu_flat().Range(value_begin[i], count),
                            .dy = dy.cpu().Cols(row, rows),
                            .dx = dx.cpu(),
                            .accumulate = i > 0},
                           cpu_stream());
      cpu().Sddmm({.weight = here.get(),
                   .dy = dy.cpu().Cols(row, rows),
                   .x = x.cpu(),
                   .dvalues = grads.cpu_flat().Range(value_begin[i], count)},
                  cpu_stream());
      row += rows;
    }
    stream().Synchronize();
    EXPECT_EQ(y.Download(), y_parts.Download()) << tokens;
    ExpectParity(dx, "dx of the joined weight", 1e-2);
    ExpectParity(grads, "gradients of the joined weight", 1e-4);
    // What lies between the parts is nobody's.
    const std::vector<double> found = grads.Download(), before = grads_parts.Reference();
    for (size_t i = 0; i + 1 < value_begin.size(); ++i) {
      for (int64_t p = value_begin[i] + layouts[i].stored_count(); p < value_begin[i + 1]; ++p) {
        ASSERT_EQ(found[p], before[p]);
      }
    }
  }
}

}  // namespace
}  // namespace filigree
