// Blocked products with factors beside the weight, and stored cells added to a dense weight in
// place.
#include <limits>

#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct FactorCase {
  int64_t out, in;
  int block_out, block_in;
  double density;
  int64_t rank, tokens;
  bool on_tensor_cores;  // by the Hopper kernel, which sums both products before it rounds
};
const FactorCase kCases[] = {
    {512, 384, 128, 128, 0.4, 64, 512, true},
    {512, 384, 128, 64, 0.4, 128, 300, true},
    {256, 384, 64, 128, 0.4, 192, 129, true},
    {256, 192, 64, 64, 0.3, 256, 1023, true},
    {1024, 1024, 128, 128, 0.03, 64, 513, true},  // rows and columns without blocks
    {640, 512, 64, 64, 0.13, 64, 1500, true},
    {512, 384, 128, 128, 0.4, 8, 512, false},  // ranks that are no whole step
    {256, 192, 64, 64, 0.3, 72, 300, false},
    {512, 384, 128, 128, 0.4, 64, 40, false},  // few tokens
    {256, 256, 64, 64, 0.0, 64, 256, false},   // nothing stored
    {136, 168, 32, 64, 0.5, 24, 130, false},   // blocks of 32, edges
    {104, 72, 32, 32, 0.6, 8, 33, false},
};

enum class Epilogue { kNone, kResidual, kGelu, kGeluBackward, kSwiGluBackward, kSwiGlu };

class GpuLowRankTest : public GpuTest {
 protected:
  struct Options {
    bool bias = false, accumulate = false, integers = false;
    Epilogue epilogue = Epilogue::kNone;
    int64_t gap = 0;
  };

  static Mirror Draw(const Options& o, int64_t rows, int64_t cols, uint64_t seed,
                     double scale = 1) {
    return o.integers ? Mirror::Integers(rows, cols, DType::kBF16, seed, o.gap)
                      : Mirror::Random(rows, cols, DType::kBF16, seed, scale, o.gap);
  }

  static void Run(const FactorCase& c, bool transposed, const Options& o) {
    const SparseLayout layout =
        RandomUniformBlocks(c.out, c.in, c.block_out, c.block_in, c.density, 3, "beside factors");
    const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
    const int64_t width = transposed ? c.in : c.out;
    // Edge blocks' padding may hold anything.
    Mirror values =
        Draw({.integers = o.integers}, 1, std::max<int64_t>(layout.stored_count(), 1), 1, 0.1);
    Mirror factor = transposed ? Draw({.integers = o.integers}, c.rank, c.in, 6, 0.1)
                               : Draw({.integers = o.integers}, c.out, c.rank, 6, 0.1);
    Mirror in = Draw(o, c.tokens, transposed ? c.out : c.in, 2);
    Mirror inner = Draw(o, c.tokens, c.rank, 7);
    Mirror out = o.accumulate ? Draw(o, c.tokens, width, 3)
                              : Mirror::Output(c.tokens, width, DType::kBF16, o.gap);
    Mirror operand = Draw(o, c.tokens, width, 4);
    Mirror up = Draw(o, c.tokens, width, 8);
    const bool swiglu = o.epilogue == Epilogue::kSwiGlu;
    Mirror beside = Mirror::Output(c.tokens, swiglu ? width / 2 : width, DType::kBF16, o.gap);
    Mirror bias = Mirror::Integers(1, width, DType::kBF16, 5);
    const auto launch = [&](bool on_gpu) {
      const auto view = [&](Mirror& m) { return on_gpu ? m.gpu() : m.cpu(); };
      const auto stored = [&](Mirror& m) { return view(m).Flat().Range(0, layout.stored_count()); };
      ProductEpilogue epilogue;
      if (o.epilogue == Epilogue::kResidual) epilogue.residual = view(operand);
      if (o.epilogue == Epilogue::kGelu) epilogue.pre_activation = view(beside);
      if (o.epilogue == Epilogue::kGeluBackward) epilogue.gelu_input = view(operand);
      if (o.epilogue == Epilogue::kSwiGluBackward) {
        epilogue.swiglu = {view(operand), view(up), view(beside)};
      }
      if (swiglu) epilogue.swiglu_output = {view(beside)};
      Backend& backend = on_gpu ? static_cast<Backend&>(gpu()) : cpu();
      Stream& queue = on_gpu ? stream() : cpu_stream();
      const PreparedLayout* weight = on_gpu ? there.get() : here.get();
      const ConstTensorView thin = view(factor);
      const LowRankTerm term = {view(inner), {&thin, 1}};
      if (transposed) {
        backend.SpmmTransposed({.weight = weight,
                                .values = stored(values),
                                .dy = view(in),
                                .dx = view(out),
                                .accumulate = o.accumulate,
                                .epilogue = epilogue,
                                .low_rank = term},
                               queue);
      } else {
        backend.Spmm({.weight = weight,
                      .values = stored(values),
                      .x = view(in),
                      .y = view(out),
                      .bias = o.bias ? ConstTensorView(view(bias).Flat()) : ConstTensorView(),
                      .epilogue = epilogue,
                      .low_rank = term},
                     queue);
      }
      queue.Synchronize();
    };
    launch(true);
    launch(false);
    const std::string what = std::to_string(c.out) + "x" + std::to_string(c.in) + " in blocks of " +
                             std::to_string(c.block_out) + "x" + std::to_string(c.block_in) +
                             " beside rank " + std::to_string(c.rank) +
                             (transposed ? " transposed, " : ", ") + std::to_string(c.tokens) +
                             " tokens, gap " + std::to_string(o.gap);
    // Products apart round the first before the second is added.
    const bool once = c.on_tensor_cores && device().compute_capability() == 90 && !o.accumulate;
    ExpectParity(out, what, once ? (o.integers ? 0 : 1e-3) : 3e-3);
    if (o.epilogue == Epilogue::kGelu || o.epilogue == Epilogue::kSwiGluBackward || swiglu) {
      ExpectParity(beside, what + ", what goes beside the output", 3e-3);
    }
  }
};

TEST_F(GpuLowRankTest, IntegersAreRoundedOnce) {
  for (const FactorCase& c : kCases) {
    for (bool transposed : {false, true}) Run(c, transposed, {.integers = true});
  }
}

TEST_F(GpuLowRankTest, RandomOperandsAndStrides) {
  for (const FactorCase& c : kCases) {
    for (bool transposed : {false, true}) {
      for (int64_t gap : {0, 8, 64}) Run(c, transposed, {.gap = gap});
    }
  }
}

TEST_F(GpuLowRankTest, BiasAndEpilogues) {
  for (const FactorCase& c : kCases) {
    Run(c, false, {.bias = true});
    Run(c, false, {.epilogue = Epilogue::kResidual, .gap = 8});
    Run(c, false, {.bias = true, .epilogue = Epilogue::kResidual});
    Run(c, false, {.bias = true, .epilogue = Epilogue::kGelu});
    Run(c, false, {.bias = true, .epilogue = Epilogue::kSwiGlu, .gap = 8});
    Run(c, true, {.accumulate = true});
    Run(c, true, {.epilogue = Epilogue::kGeluBackward, .gap = 8});
    Run(c, true, {.accumulate = true, .epilogue = Epilogue::kGeluBackward});
    Run(c, true, {.epilogue = Epilogue::kSwiGluBackward, .gap = 8});
    Run(c, true, {.accumulate = true, .epilogue = Epilogue::kSwiGluBackward});
  }
}

// Three weights joined, with factors of different ranks: theirs lie among other values, as in a
// flat buffer. Against the reference part by part.
TEST_F(GpuLowRankTest, FactorsOfJoinedWeights) {
  constexpr int64_t kIn = 384, kTokens = 300, kParts = 3;
  for (const bool equal_ranks : {true, false}) {
    const int64_t outs[kParts] = {256, 128, 384};
    const int64_t ranks[kParts] = {128, equal_ranks ? 128 : 64, 128};
    std::vector<SparseLayout> layouts;
    std::vector<std::unique_ptr<PreparedLayout>> parts;
    std::vector<const PreparedLayout*> pointers;
    std::vector<int64_t> value_begin, a_begin, b_begin;
    int64_t stored = 0, thin = 0, out = 0, width = 0;
    for (int i = 0; i < kParts; ++i) {
      layouts.push_back(RandomUniformBlocks(outs[i], kIn, 128, 64, 0.3, i, "part"));
      parts.push_back(gpu().PrepareLayout(layouts.back()));
      pointers.push_back(parts.back().get());
      value_begin.push_back(stored);
      stored += layouts.back().stored_count();
      a_begin.push_back(thin);
      b_begin.push_back(thin + ranks[i] * kIn);
      thin = b_begin.back() + ranks[i] * outs[i];
      out += outs[i];
      width += ranks[i];
    }
    const auto joined = gpu().PrepareGroup(pointers, value_begin);
    if (!joined) GTEST_SKIP() << "this card does not join weights";
    Mirror values = Mirror::Random(1, stored, DType::kBF16, 1, 0.1);
    Mirror factors = Mirror::Random(1, thin, DType::kBF16, 2, 0.1);
    Mirror x = Mirror::Random(kTokens, kIn, DType::kBF16, 3);
    Mirror dy = Mirror::Random(kTokens, out, DType::kBF16, 4);
    Mirror inner = Mirror::Random(kTokens, width, DType::kBF16, 5);
    Mirror y = Mirror::Output(kTokens, out, DType::kBF16);
    Mirror dx = Mirror::Output(kTokens, kIn, DType::kBF16);
    const auto a = [&](TensorView flat, int i) {
      return flat.Range(a_begin[i], ranks[i] * kIn).Reshape({ranks[i], kIn});
    };
    const auto b = [&](TensorView flat, int i) {
      return flat.Range(b_begin[i], ranks[i] * outs[i]).Reshape({outs[i], ranks[i]});
    };
    std::vector<ConstTensorView> as, bs;
    for (int i = 0; i < kParts; ++i) {
      as.push_back(a(factors.gpu_flat(), i));
      bs.push_back(b(factors.gpu_flat(), i));
    }
    gpu().Spmm({.weight = joined.get(),
                .values = values.gpu_flat(),
                .x = x.gpu(),
                .y = y.gpu(),
                .low_rank = {inner.gpu(), bs}},
               stream());
    gpu().SpmmTransposed({.weight = joined.get(),
                          .values = values.gpu_flat(),
                          .dy = dy.gpu(),
                          .dx = dx.gpu(),
                          .low_rank = {inner.gpu(), as}},
                         stream());
    stream().Synchronize();
    int64_t row = 0, column = 0;
    for (int i = 0; i < kParts; ++i) {
      const auto here = cpu().PrepareLayout(layouts[i]);
      const ConstTensorView part_a = a(factors.cpu_flat(), i), part_b = b(factors.cpu_flat(), i);
      const TensorView part_values =
          values.cpu_flat().Range(value_begin[i], layouts[i].stored_count());
      const ConstTensorView part_inner = inner.cpu().Cols(column, ranks[i]);
      cpu().Spmm({.weight = here.get(),
                  .values = part_values,
                  .x = x.cpu(),
                  .y = y.cpu().Cols(row, outs[i]),
                  .low_rank = {part_inner, {&part_b, 1}}},
                 cpu_stream());
      cpu().SpmmTransposed({.weight = here.get(),
                            .values = part_values,
                            .dy = dy.cpu().Cols(row, outs[i]),
                            .dx = dx.cpu(),
                            .accumulate = i > 0,
                            .low_rank = {part_inner, {&part_a, 1}}},
                           cpu_stream());
      row += outs[i];
      column += ranks[i];
    }
    const std::string what = equal_ranks ? "equal ranks" : "different ranks";
    ExpectParity(y, "y of joined weights, " + what, 3e-3);
    ExpectParity(dx, "dx of joined weights, " + what, 3e-3);
  }
}

// Cells of every kind of layout, at odd shapes; what is not stored keeps its value.
TEST_F(GpuLowRankTest, StoredCellsAreAddedInPlace) {
  const SparseLayout layouts[] = {
      SparseLayout::Dense(33, 40),
      SparseLayout::Dense(19, 37, 40),
      RandomUnstructured(64, 128, 0.25, 1, "a"),
      RandomUnstructured(37, 61, 0.03, 1, "b"),
      RandomUnstructured(5, 20000, 0.03, 1, "rows of a CTA"),
      RandomUnstructured(4, 70000, 0.05, 1, "32-bit columns"),
      RandomUniformBlocks(64, 96, 32, 32, 0.5, 1, "c"),
      RandomUniformBlocks(100, 70, 32, 32, 0.6, 1, "edges"),
      RandomUniformBlocks(23, 31, 3, 5, 0.4, 1, "odd blocks"),
      RandomUniformBlocks(64, 64, 32, 32, 0.0, 1, "nothing stored"),
  };
  for (const SparseLayout& layout : layouts) {
    for (int64_t gap : {0, 3, 8}) {
      const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
      std::vector<double> stored(layout.stored_count());
      const std::vector<int64_t> logical = layout.LogicalIndices();
      for (size_t i = 0; i < stored.size(); ++i) {
        stored[i] = logical[i] < 0 ? std::numeric_limits<double>::quiet_NaN() : i % 5 - 2.0;
      }
      Mirror values = Mirror::Of(1, layout.stored_count(), DType::kBF16, stored);
      Mirror dense = Mirror::Integers(layout.out(), layout.in(), DType::kBF16, 2, gap);
      gpu().ScatterStored({.weight = there.get(),
                           .values = values.gpu_flat(),
                           .dense = dense.gpu(),
                           .accumulate = true},
                          stream());
      stream().Synchronize();
      cpu().ScatterStored({.weight = here.get(),
                           .values = values.cpu_flat(),
                           .dense = dense.cpu(),
                           .accumulate = true},
                          cpu_stream());
      ExpectEqual(dense, std::string(NameOf(layout.kind())) + " " + std::to_string(layout.out()) +
                             "x" + std::to_string(layout.in()) + ", gap " + std::to_string(gap));
    }
  }
}

}  // namespace
}  // namespace filigree
