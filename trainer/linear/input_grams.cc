#include "trainer/linear/input_grams.h"

#include <cstddef>

namespace filigree {
namespace {

int64_t Cells(const InputGram& gram) { return gram.gram.size(); }

// Whether `next` lies behind `gram` in memory and is of its size.
bool Follows(const InputGram& next, const InputGram& gram) {
  const auto* end = static_cast<const std::byte*>(gram.gram.data()) + gram.gram.bytes();
  return next.gram.data() == end && Cells(next) == Cells(gram);
}

// How many of `grams`, from the first on, are one batch.
size_t BatchOf(std::span<const InputGram> grams) {
  size_t count = 1;
  while (count < grams.size() && Follows(grams[count], grams[count - 1]) &&
         grams[count].begin - grams[count - 1].begin == grams[1].begin - grams[0].begin) {
    ++count;
  }
  return count;
}

}  // namespace

void AddInputGrams(ConstTensorView x, std::span<const InputGram> grams, Backend& backend,
                   Stream& stream) {
  while (!grams.empty()) {
    const size_t count = BatchOf(grams);
    const InputGram& first = grams.front();
    const ConstTensorView columns = x.Cols(first.begin, first.gram.rows());
    MatMulArgs product = {.a = columns,
                          .b = columns,
                          .out = first.gram,
                          .transpose_a = true,
                          .accumulate = true};
    if (count > 1) {
      const int64_t distance = grams[1].begin - first.begin;
      product.batch = {static_cast<int64_t>(count), distance, distance, Cells(first)};
    }
    backend.MatMul(product, stream);
    grams = grams.subspan(count);
  }
}

}  // namespace filigree
