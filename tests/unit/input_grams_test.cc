// Inner products of inputs in blocks of columns: batches of them and single ones are the same sums.
#include "trainer/linear/input_grams.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

struct Block {
  int64_t begin, size;
};

TEST(InputGramsTest, EachIsTheSumOverTokensOfItsColumnsProducts) {
  constexpr int64_t kTokens = 9, kColumns = 40, kPitch = 48;
  CpuDevice device;
  CpuBackend backend(device);
  const std::unique_ptr<Stream> stream = device.NewStream();
  std::vector<float> x(kTokens * kPitch);
  for (size_t i = 0; i < x.size(); ++i) {  // small integers: sums are exact
    x[i] = static_cast<float>(static_cast<int>(RandomUniform(1, 2, i) * 9) - 4);
  }
  // A batch of three, one of the same size at another distance, two of another size, one that
  // overlaps them.
  const std::vector<Block> blocks = {{0, 8}, {8, 8}, {16, 8}, {32, 8}, {0, 16}, {16, 16}, {8, 24}};
  int64_t cells = 0;
  for (const Block& block : blocks) cells += block.size * block.size;
  std::vector<float> memory(static_cast<size_t>(cells), 3.0f);  // added to
  const TensorView all(memory.data(), DType::kF32, {cells});
  std::vector<InputGram> grams;
  cells = 0;
  for (const Block& block : blocks) {
    const TensorView gram = all.Range(cells, block.size * block.size);
    grams.push_back({.begin = block.begin, .gram = gram.Reshape({block.size, block.size})});
    cells += block.size * block.size;
  }
  const ConstTensorView rows(x.data(), DType::kF32, {kTokens, kPitch});
  AddInputGrams(rows.Cols(0, kColumns), grams, backend, *stream);
  size_t cell = 0;
  for (const Block& block : blocks) {
    for (int64_t i = 0; i < block.size * block.size; ++i, ++cell) {
      float sum = 3;
      for (int64_t t = 0; t < kTokens; ++t) {
        const float* row = x.data() + t * kPitch + block.begin;
        sum += row[i / block.size] * row[i % block.size];
      }
      EXPECT_EQ(memory[cell], sum) << block.begin << "+" << block.size << " cell " << i;
    }
  }
}

}  // namespace
}  // namespace filigree
