// The backend's blocked products on layouts, sizes and token counts that stress the Hopper kernels'
// schedules, against the CPU backend in double precision: integers exactly, random numbers within
// rounding, every result the same bits twice.
#include <string>
#include <vector>

#include "kernels/sparse/random_layout.h"
#include "tests/gpu/block_layouts.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Block {
  int out, in;
};
constexpr Block kBlocks[] = {{128, 128}, {128, 64}, {64, 64}, {64, 128}};

class BlockProductsTest : public GpuTest {
 protected:
  // All three products over `layout`; the weight's gradient and the sums of dy are overwritten,
  // then added to, in either dtype.
  static void CheckAll(const SparseLayout& layout, int64_t tokens, bool integers,
                       const std::string& what) {
    const auto draw = [&](int64_t rows, int64_t cols, uint64_t seed) {
      return integers ? Mirror::Integers(rows, cols, DType::kBF16, seed)
                      : Mirror::Random(rows, cols, DType::kBF16, seed);
    };
    const auto there = gpu().PrepareLayout(layout), here = cpu().PrepareLayout(layout);
    const int64_t stored = layout.stored_count();
    Mirror values = draw(1, stored, 1), x = draw(tokens, layout.in(), 2);
    Mirror dy = draw(tokens, layout.out(), 3);
    Mirror y = Mirror::Output(tokens, layout.out(), DType::kBF16);
    Mirror dx = Mirror::Output(tokens, layout.in(), DType::kBF16);
    Mirror grads = Mirror::Output(1, stored, DType::kF32);
    Mirror narrow_grads = Mirror::Output(1, stored, DType::kBF16);
    Mirror sums = Mirror::Output(1, layout.out(), DType::kF32);
    Mirror narrow_sums = Mirror::Output(1, layout.out(), DType::kBF16);
    const auto run = [&](Backend& backend, Stream& queue, const PreparedLayout* weight,
                         const auto& view) {
      backend.Spmm({.weight = weight, .values = view(values).Flat(), .x = view(x), .y = view(y)},
                   queue);
      backend.SpmmTransposed(
          {.weight = weight, .values = view(values).Flat(), .dy = view(dy), .dx = view(dx)}, queue);
      for (bool accumulate : {false, true}) {
        for (const bool narrow : {false, true}) {
          backend.Sddmm({.weight = weight,
                         .dy = view(dy),
                         .x = view(x),
                         .dvalues = view(narrow ? narrow_grads : grads).Flat(),
                         .accumulate = accumulate,
                         .dy_sums = view(narrow ? narrow_sums : sums).Flat(),
                         .accumulate_sums = accumulate},
                        queue);
        }
      }
      queue.Synchronize();
    };
    const auto on_gpu = [](Mirror& m) { return m.gpu(); };
    std::vector<double> results[2][6];
    for (auto& result : results) {
      run(gpu(), stream(), there.get(), on_gpu);
      result[0] = y.Download(), result[1] = dx.Download(), result[2] = grads.Download();
      result[3] = narrow_grads.Download();
      result[4] = sums.Download(), result[5] = narrow_sums.Download();
    }
    run(cpu(), cpu_stream(), here.get(), [](Mirror& m) { return m.cpu(); });
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(results[0][i], results[1][i]) << what << ", product " << i;
    }
    // Tensor cores truncate: an F32 sum loses up to its last bit at each of its 16-deep steps.
    const auto floor = [&](int64_t depth) {
      return integers ? 0 : 1e-4 + static_cast<double>(depth) / 16 / (1 << 24);
    };
    ExpectParity(y, what + ", forward", floor(layout.in()));
    ExpectParity(dx, what + ", input gradient", floor(layout.out()));
    ExpectParity(grads, what + ", weight gradient", floor(tokens));
    ExpectParity(narrow_grads, what + ", weight gradient in bf16", floor(tokens));
    ExpectParity(sums, what + ", sums of dy", floor(tokens));
    ExpectParity(narrow_sums, what + ", sums of dy in bf16", floor(tokens));
    CheckWithoutSums(layout, there.get(), dy, x, grads, floor(tokens), what);
  }

 private:
  // Without sums beside it, which may divide the work otherwise: the same bits every time, and the
  // reference's values. `reference` holds them.
  static void CheckWithoutSums(const SparseLayout& layout, const PreparedLayout* weight, Mirror& dy,
                               Mirror& x, Mirror& reference, double floor,
                               const std::string& what) {
    std::vector<double> results[2];
    for (auto& result : results) {
      for (const bool accumulate : {false, true}) {
        gpu().Sddmm({.weight = weight,
                     .dy = dy.gpu(),
                     .x = x.gpu(),
                     .dvalues = reference.gpu_flat(),
                     .accumulate = accumulate},
                    stream());
      }
      stream().Synchronize();
      result = reference.Download();
    }
    EXPECT_EQ(results[0], results[1]) << what << ", weight gradient without sums";
    ExpectParity(reference, what + ", weight gradient without sums", floor);
  }
};

TEST_F(BlockProductsTest, EveryLayout) {
  for (const Block& block : kBlocks) {
    for (const Pattern pattern : kPatterns) {
      for (const bool integers : {true, false}) {
        const SparseLayout layout = MakeLayout(pattern, 768, 512, block.out, block.in);
        CheckAll(layout, 1023, integers,
                 std::string(kPatternNames[static_cast<int>(pattern)]) + " in blocks of " +
                     std::to_string(block.out) + "x" + std::to_string(block.in));
      }
    }
  }
}

// Sparse enough, or so few tokens, that weights are not shared in pairs; and the other way round.
TEST_F(BlockProductsTest, EveryTokenCount) {
  for (const Block& block : kBlocks) {
    for (const double density : {0.1, 0.3}) {
      const SparseLayout layout =
          RandomUniformBlocks(512, 1024, block.out, block.in, density, 7, "tokens");
      for (const int64_t tokens : {1, 77, 129, 512, 1029, 4096}) {
        CheckAll(layout, tokens, tokens % 2 == 1,
                 std::to_string(tokens) + " tokens, blocks of " + std::to_string(block.out) + "x" +
                     std::to_string(block.in));
      }
    }
  }
}

// More units than multiprocessors: whole units, then shared ones; and many tokens for few units.
TEST_F(BlockProductsTest, ManyUnitsAndManyTokens) {
  for (const Block& block : kBlocks) {
    const std::string what = std::to_string(block.out) + "x" + std::to_string(block.in);
    CheckAll(RandomBalancedBlocks(2048, 3072, block.out, block.in, 0.75, 7, "units"), 641, true,
             "many units of " + what);
    CheckAll(RandomUniformBlocks(512, 640, block.out, block.in, 0.25, 7, "long"), 16384 + 5, false,
             "many tokens, blocks of " + what);
  }
}

// Units in two parts, of which one waits for the other's sum, and in more, which a second kernel
// adds up; square blocks in rows of odd length, paired along columns in either direction.
TEST_F(BlockProductsTest, UnitsInParts) {
  CheckAll(RandomUniformBlocks(1280, 2048, 128, 128, 0.8, 7, "two"), 3072 + 5, true, "two parts");
  CheckAll(RandomUniformBlocks(1024, 640, 128, 128, 0.6, 7, "more"), 4096, false, "more parts");
  CheckAll(RandomUniformBlocks(2048, 2560, 128, 128, 0.9, 7, "over"), 2113, true,
           "units left over");
}

}  // namespace
}  // namespace filigree
