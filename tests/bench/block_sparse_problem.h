// A block-sparse product to check or to time: a pattern, its operands on the device, its work
// lists.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sddmm_bsr_mma.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/spmm_bsr_mma.h"
#include "kernels/cuda/spmm_bsr_sm90.h"

namespace filigree::bench {

// Owns device memory of `count` elements (at least one, so that the pointer is never null).
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t count) : count_(count) {
    CUDA_CHECK(cudaMalloc(&data_, (count == 0 ? 1 : count) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    CUDA_CHECK(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }
  T* get() const { return data_; }
  size_t size() const { return count_; }
  std::vector<T> Download() const {
    std::vector<T> host(count_);
    CUDA_CHECK(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  // Fills with bytes 0xFF, which read as NaN in bf16 and fp32.
  void Poison() { CUDA_CHECK(cudaMemset(data_, 0xFF, count_ * sizeof(T))); }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

enum class Layout { kRandom, kBalanced, kEmptyRows, kOneBlock, kFull, kUnbalanced, kEmpty };
const char* LayoutName(Layout layout);

struct HostPattern {
  BlockShape block;
  int rows = 0;
  int cols = 0;
  std::vector<int> row_begin;
  std::vector<int> col;

  BsrPattern view() const { return {block, rows, cols, row_begin, col}; }
};

// kRandom keeps round(density * blocks) blocks drawn uniformly by the seed; kBalanced gives rows
// and columns counts that differ by at most one.
HostPattern MakePattern(Layout layout, BlockShape block, int64_t out_features, int64_t in_features,
                        double density, uint64_t seed);

enum class Fill { kNormal, kInteger };
// Normal values with deviation `scale`, or integers in [-2, 2]; a function of (seed, index) alone.
void FillRandom(__nv_bfloat16* data, int64_t count, Fill fill, float scale, uint64_t seed);

// Which kernels run the products: wgmma, for Hopper, or mma.sync, for any card since Ampere.
enum class Path { kHopper, kGeneral };
const char* PathName(Path path);

// Overrides of the variants' own choices, for tuning; 0 keeps the choice.
struct Tuning {
  Path path = Path::kHopper;
  int cluster = 0;
  int token_group = 0;
};

class BlockSparseProblem {
 public:
  BlockSparseProblem(HostPattern pattern, int64_t tokens, Fill fill, uint64_t seed, Tuning tuning);

  void RunForward(int set, cudaStream_t stream);                      // y = x W^T
  void RunInputGrad(int set, cudaStream_t stream);                    // dx = dy W
  void RunWeightGrad(int set, bool accumulate, cudaStream_t stream);  // gradient (+)= dy^T x

  // Blocks scattered into a dense [out, in] weight.
  DeviceArray<__nv_bfloat16> DenseWeight() const;
  double ForwardFlops() const {
    return 2.0 * tokens * pattern.view().block_count() * pattern.block.rows * pattern.block.cols;
  }

  HostPattern pattern;
  int64_t tokens, out_features, in_features;
  static constexpr int kSets = 2;
  DeviceArray<__nv_bfloat16> values, x[kSets], dy[kSets], y, dx;
  DeviceArray<float> gradient;
  SpmmConfig forward_config, input_grad_config;

 private:
  struct SpmmLists {
    DeviceArray<SpmmStep> steps;
    DeviceArray<SpmmTile> tiles;
    DeviceArray<int32_t> worker_begin;
  };
  // The same for the mma.sync kernels: for each output block column its blocks.
  struct SpmmIndex {
    DeviceArray<int> offsets, panels, slots;
  };
  void PrepareHopper(Tuning tuning);
  void PrepareGeneral();
  void RunGeneralSpmm(bool transposed, const __nv_bfloat16* input, __nv_bfloat16* output,
                      cudaStream_t stream);
  void RunGeneralWeightGrad(int set, bool accumulate, cudaStream_t stream);
  SddmmMmaDesc GeneralWeightGradDesc() const;
  SpmmDesc Desc(bool transposed) const;
  SpmmConfig Prepare(bool transposed, Tuning tuning, SpmmLists* lists);
  void RunSpmm(bool transposed, const __nv_bfloat16* input, __nv_bfloat16* output,
               cudaStream_t stream);

  Path path_;
  SpmmIndex forward_index_, input_grad_index_;
  DeviceArray<float> general_workspace_;
  SpmmLists forward_, input_grad_;
  SddmmConfig weight_grad_config_;
  SddmmOrientation orientation_;
  DeviceArray<SddmmUnit> units_;
  DeviceArray<SddmmSegment> segments_;
  DeviceArray<int32_t> segment_begin_;
  DeviceArray<SddmmReduction> reductions_;
  DeviceArray<float> partials_;
};

int MultiprocessorCount();

}  // namespace filigree::bench
