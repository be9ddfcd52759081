// Stored values of several weights to their dense ones and back, in one call.
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// Of several forms, so that a call is several launches, and more of one form than one launch takes.
std::vector<SparseLayout> MixedLayouts() {
  return {RandomUnstructured(48, 768, 0.25, 1, "q"),
          RandomUnstructured(16, 768, 0.25, 1, "k"),
          RandomUnstructured(7, 768, 0.25, 1, "v"),
          RandomUnstructured(61, 37, 0.1, 1, "rows of any width"),
          RandomUnstructured(9, 3072, 0.25, 1, "a row for a block of threads"),
          RandomUnstructured(19, 2048, 0.5, 1, "a row for a warp"),
          SparseLayout::Dense(5, 24),
          RandomUnstructured(33, 96, 0.25, 1, "after another form"),
          RandomUniformBlocks(64, 96, 32, 32, 0.5, 1, "blocks"),
          RandomUniformBlocks(96, 64, 64, 16, 0.5, 1, "other blocks"),
          RandomUniformBlocks(23, 31, 3, 5, 0.4, 1, "odd blocks"),
          RandomUniformBlocks(64, 64, 32, 32, 0.0, 1, "nothing stored"),
          RandomUnstructured(4, 70000, 0.05, 1, "32-bit columns")};
}

class GpuStoredGroupTest : public GpuTest {
 protected:
  struct Weight {
    std::unique_ptr<PreparedLayout> there, here;
    Mirror values, dense;
  };

  // Whole numbers in the values and in the dense weights; what pads edge blocks is zero.
  static std::vector<Weight> Draw(int64_t gap, DType grads) {
    std::vector<Weight> weights;
    for (const SparseLayout& layout : MixedLayouts()) {
      const uint64_t seed = weights.size();
      std::vector<double> values =
          Mirror::Integers(1, layout.stored_count(), grads, seed).Reference();
      const std::vector<int64_t> logical = layout.LogicalIndices();
      for (size_t i = 0; i < values.size(); ++i) {
        if (logical[i] < 0) values[i] = 0;
      }
      weights.push_back(
          {gpu().PrepareLayout(layout), cpu().PrepareLayout(layout),
           Mirror::Of(1, layout.stored_count(), grads, values),
           Mirror::Integers(layout.out(), layout.in(), DType::kBF16, 100 + seed, gap)});
    }
    return weights;
  }

  static std::string Name(size_t i) { return "weight " + std::to_string(i); }
};

TEST_F(GpuStoredGroupTest, ScattersAsOneByOne) {
  for (const bool accumulate : {false, true}) {
    for (const int64_t gap : {0, 3, 8}) {
      std::vector<Weight> weights = Draw(gap, DType::kBF16);
      std::vector<ScatterStoredArgs> there, here;
      for (Weight& w : weights) {
        there.push_back({w.there.get(), w.values.gpu_flat(), w.dense.gpu(), accumulate});
        here.push_back({w.here.get(), w.values.cpu_flat(), w.dense.cpu(), accumulate});
      }
      gpu().ScatterGroup(there, stream());
      stream().Synchronize();
      cpu().ScatterGroup(here, cpu_stream());
      for (size_t i = 0; i < weights.size(); ++i) ExpectEqual(weights[i].dense, Name(i));
    }
  }
}

TEST_F(GpuStoredGroupTest, GathersAsOneByOne) {
  for (const DType grads : {DType::kF32, DType::kBF16}) {
    for (const bool accumulate : {false, true}) {
      for (const int64_t gap : {0, 3}) {
        std::vector<Weight> weights = Draw(gap, grads);
        std::vector<GatherStoredArgs> there, here;
        for (Weight& w : weights) {
          there.push_back({w.there.get(), w.dense.gpu(), w.values.gpu_flat(), accumulate});
          here.push_back({w.here.get(), w.dense.cpu(), w.values.cpu_flat(), accumulate});
        }
        gpu().GatherGroup(there, stream());
        stream().Synchronize();
        cpu().GatherGroup(here, cpu_stream());
        for (size_t i = 0; i < weights.size(); ++i) ExpectEqual(weights[i].values, Name(i));
      }
    }
  }
}

}  // namespace
}  // namespace filigree
