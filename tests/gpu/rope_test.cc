// Rotary positions on the GPU: slices of a joint q, k, v matrix, odd heads, far positions, inverse.
#include <string>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t sequences, seq_len, heads, head_size, gap;
};
constexpr Shape kShapes[] = {{1, 1, 1, 2, 0},     {3, 5, 3, 6, 0},      {2, 33, 1, 16, 0},
                             {2, 33, 5, 16, 8},   {3, 129, 12, 64, 0},  {3, 129, 12, 64, 4},
                             {2, 77, 2, 1024, 0}, {2, 1024, 16, 128, 0}};

std::string Name(const Shape& s) {
  return "Rope of " + std::to_string(s.sequences) + " x " + std::to_string(s.seq_len) + ", " +
         std::to_string(s.heads) + " heads of " + std::to_string(s.head_size);
}

class GpuRopeTest : public GpuTest {};

TEST_F(GpuRopeTest, ForwardAndInverse) {
  for (const Shape& s : kShapes) {
    const int64_t tokens = s.sequences * s.seq_len, cols = s.heads * s.head_size;
    for (bool inverse : {false, true}) {
      auto x = Mirror::Random(tokens, cols, DType::kBF16, 1, 1, s.gap);
      gpu().Rope({x.gpu(), s.seq_len, s.heads, 10000.0, inverse}, stream());
      cpu().Rope({x.cpu(), s.seq_len, s.heads, 10000.0, inverse}, cpu_stream());
      stream().Synchronize();
      ExpectParity(x, Name(s));
    }
  }
}

TEST_F(GpuRopeTest, SlicesOfOneMatrix) {
  constexpr int64_t kTokens = 66, kHeads = 4, kKvHeads = 2, kSize = 64;
  auto qkv = Mirror::Random(kTokens, (kHeads + 2 * kKvHeads) * kSize, DType::kBF16, 1);
  const auto turn = [&](Backend& backend, Stream& on, TensorView all) {
    backend.Rope({all.Cols(0, kHeads * kSize), 33, kHeads, 5e5, false}, on);
    backend.Rope({all.Cols(kHeads * kSize, kKvHeads * kSize), 33, kKvHeads, 5e5, false}, on);
  };
  turn(gpu(), stream(), qkv.gpu());
  turn(cpu(), cpu_stream(), qkv.cpu());
  stream().Synchronize();
  // v, which is not turned, is compared too.
  ExpectParity(qkv, "Rope of slices");
}

// 64k positions: an angle of 65535 radians in fp32 would be wrong by thousandths.
TEST_F(GpuRopeTest, FarPositions) {
  constexpr int64_t kTokens = 65536, kSize = 64;
  auto x = Mirror::Random(kTokens, kSize, DType::kBF16, 1);
  gpu().Rope({x.gpu(), kTokens, 1, 10000.0, false}, stream());
  cpu().Rope({x.cpu(), kTokens, 1, 10000.0, false}, cpu_stream());
  stream().Synchronize();
  ExpectParity(x, "Rope far out", 1e-5);
}

}  // namespace
}  // namespace filigree
