// The sum of the ranks' slices, as the exchange by copies takes it.
#include "kernels/cuda/slice_sum.h"

#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

class SliceSumTest : public GpuTest {};

// In F32 in order of rank, rounded once: bit for bit, at sizes with and without 16-byte accesses.
TEST_F(SliceSumTest, AddsInOrderAndRoundsOnce) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int count : {1, 2, 3, 8}) {
      for (const int64_t n : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{100 * 256}}) {
        Mirror slices = Mirror::Random(1, count * n, dtype, 1);
        Mirror out = Mirror::Output(1, n, dtype);
        SumSlices(slices.gpu_flat(), out.gpu_flat(), stream());
        stream().Synchronize();
        const std::vector<double> in = slices.Download(), found = out.Download();
        for (int64_t i = 0; i < n; ++i) {
          float sum = static_cast<float>(in[i]);
          for (int rank = 1; rank < count; ++rank) sum += static_cast<float>(in[rank * n + i]);
          const float expected = dtype == DType::kBF16 ? static_cast<float>(BFloat16(sum)) : sum;
          ASSERT_EQ(found[i], expected)
              << NameOf(dtype) << ", " << count << " slices of " << n << ", element " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace filigree
