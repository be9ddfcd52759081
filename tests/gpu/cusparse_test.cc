// The peer of the kernel benchmark computes what ours do: else its times would say nothing.
#include <string>
#include <vector>

#include "kernels/cuda/cusparse_weight.h"
#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

class CusparseTest : public GpuTest {};

// Integers: exact. What cuSPARSE does not serve it must say, and CSR's products it serves.
TEST_F(CusparseTest, ComputesTheSameProducts) {
  constexpr int64_t kOut = 384, kIn = 256, kTokens = 96;
  for (const auto format : {CusparseFormat::kCsr, CusparseFormat::kBsr}) {
    for (const int block : {32, 64, 128}) {
      const std::string what = std::string(format == CusparseFormat::kCsr ? "CSR" : "BSR") +
                               " in blocks of " + std::to_string(block);
      const SparseLayout layout = RandomUniformBlocks(kOut, kIn, block, block, 0.4, 3, "cusparse");
      Mirror values = Mirror::Integers(1, layout.stored_count(), DType::kBF16, 1);
      Mirror x = Mirror::Integers(kTokens, kIn, DType::kBF16, 2);
      Mirror dy = Mirror::Integers(kTokens, kOut, DType::kBF16, 3);
      Mirror y = Mirror::Output(kTokens, kOut, DType::kBF16);
      Mirror dx = Mirror::Output(kTokens, kIn, DType::kBF16);
      Mirror grads = Mirror::Output(1, layout.stored_count(), DType::kF32);
      const auto here = cpu().PrepareLayout(layout);
      cpu().Spmm({.weight = here.get(), .values = values.cpu_flat(), .x = x.cpu(), .y = y.cpu()},
                 cpu_stream());
      cpu().SpmmTransposed(
          {.weight = here.get(), .values = values.cpu_flat(), .dy = dy.cpu(), .dx = dx.cpu()},
          cpu_stream());
      cpu().Sddmm({.weight = here.get(),
                   .dy = dy.cpu(),
                   .x = x.cpu(),
                   .dvalues = grads.cpu_flat(),
                   .accumulate = false},
                  cpu_stream());
      std::vector<BFloat16> stored;
      for (const double value : values.Download()) stored.emplace_back(static_cast<float>(value));
      CusparseWeight weight(layout, stored, format, static_cast<CudaDevice&>(gpu().device()));
      const bool csr = format == CusparseFormat::kCsr;
      const bool forward = weight.Forward(x.gpu(), y.gpu(), stream());
      EXPECT_TRUE(forward || !csr);
      if (forward) {
        stream().Synchronize();
        ExpectEqual(y, what + ", forward");
      }
      const bool input_grad = weight.InputGrad(dy.gpu(), dx.gpu(), stream());
      EXPECT_EQ(input_grad, forward) << what;
      if (input_grad) {
        stream().Synchronize();
        ExpectEqual(dx, what + ", input gradient");
      }
      const bool weight_grad = weight.WeightGrad(dy.gpu(), x.gpu(), stream());
      std::printf("%s: cuSPARSE has %s%s\n", what.c_str(), forward ? "SpMM" : "no SpMM",
                  weight_grad ? ", SDDMM" : ", no SDDMM");
      if (!weight_grad) continue;
      const std::vector<float> found = weight.DownloadGradients(stream());
      const std::vector<double> expected = grads.Reference();
      const std::vector<int64_t> logical = layout.LogicalIndices();
      std::vector<double> dense(kOut * kIn, 0);
      for (size_t slot = 0; slot < logical.size(); ++slot) dense[logical[slot]] = expected[slot];
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i], dense[weight.positions()[i]]) << what << ", gradient " << i;
      }
    }
  }
}

}  // namespace
}  // namespace filigree
