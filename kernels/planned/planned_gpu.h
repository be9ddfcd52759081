// A GPU that is not there, for `plan`: it has the CUDA backend's dtypes, alignments, joined weights
// and sizes, and neither memory nor operations.
#pragma once

#include <memory>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {

class PlannedGpu final : public Device {
 public:
  explicit PlannedGpu(GpuCard card) : card_(std::move(card)) {}
  const GpuCard& card() const { return card_; }

  std::string_view name() const override { return "cuda"; }
  DType compute_dtype() const override { return DType::kBF16; }
  int64_t row_alignment() const override { return kGpuRowAlignment; }
  MemoryUsage memory_usage() const override { return {}; }
  void ForgetPeak() override {}

  // A broken invariant, each of these.
  DeviceBuffer Allocate(size_t bytes, std::string_view kind) override;
  DeviceBuffer AllocatePinned(size_t bytes, std::string_view kind) override;
  void CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) override;
  void ZeroAsync(TensorView dst, Stream& stream) override;
  std::unique_ptr<Stream> NewStream(StreamPriority priority) override;
  std::unique_ptr<Event> NewEvent() override;
  std::unique_ptr<Event> NewTimedEvent() override;

 private:
  const GpuCard card_;
};

// The operations are the CPU's and have nothing to work on, since the device allocates nothing.
class PlannedGpuBackend final : public CpuBackend {
 public:
  explicit PlannedGpuBackend(PlannedGpu& gpu) : CpuBackend(gpu), card_(gpu.card()) {}

  std::unique_ptr<PreparedLayout> PrepareLayout(const SparseLayout& layout) override;
  std::unique_ptr<PreparedLayout> PrepareGroup(std::span<const PreparedLayout* const> parts,
                                               std::span<const int64_t> value_begin) override;
  double BlockedFlopCost(const SparseLayout& layout) const override;
  // As where cuSPARSELt is found.
  int64_t TwoFourBytes(int64_t out, int64_t in, TwoFourKind kind) const override;
  void set_deterministic(bool deterministic) override { deterministic_ = deterministic; }

 private:
  const GpuCard& card_;
  bool deterministic_ = false;
};

}  // namespace filigree
