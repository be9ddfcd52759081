// Sums over rows (biases, gains) that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {

// sum[0, width) (+)= the sum over `rows` rows, where add_rows(begin, end, partial) adds those of
// [begin, end) to a partial sum of `width`. Rows are cut into ranges of a fixed length, and their
// sums added in order.
template <typename T, typename AddRows>
void SumOverRows(int64_t rows, int64_t width, T* sum, bool accumulate, const AddRows& add_rows) {
  constexpr int64_t kRangeRows = 128;
  const int64_t ranges = CeilDiv(rows, kRangeRows);
  T* partials = Scratch<T>(ScratchSlot::kSums, ranges * width);
  ParallelFor(ranges, CeilDiv(RowGrain(width), kRangeRows), [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range) {
      T* partial = partials + range * width;
      std::fill(partial, partial + width, T(0));
      add_rows(range * kRangeRows, std::min(rows, (range + 1) * kRangeRows), partial);
    }
  });
  if (!accumulate) std::fill(sum, sum + width, T(0));
  const auto& simd = Simd<T>();
  for (int64_t range = 0; range < ranges; ++range) {
    simd.add(sum, partials + range * width, sum, width);
  }
}

}  // namespace filigree
