// A SparseLayout as the CUDA kernels read it.
//
// Index buffers are on the device once for all that prepare a layout (device_index.h). The Hopper kernels also walk work
// lists (block_schedule.h), which depend on the token count too: they are built on the host when a
// count first comes up, uploaded, and kept; so a first call of a token count waits for the device,
// and must come before its stream is captured. A few are kept for each product, the one longest
// unused makes way: training needs one or two, generation passes through many.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_index.h"

namespace filigree {

// Of a blocked layout, for kernels that walk blocks in either direction; see
// SparseLayout::Transposed.
struct BlockIndex {
  const int32_t* row_offsets = nullptr;     // [grid rows + 1]
  const int32_t* columns = nullptr;         // [blocks]
  const int32_t* column_offsets = nullptr;  // [grid columns + 1]
  const int32_t* rows = nullptr;            // [blocks]
  const int32_t* slots = nullptr;           // [blocks]
};

// A host schedule's lists in one device buffer.
struct DeviceSpmmSchedule {
  int64_t tokens = 0;
  SpmmTiling tiling;
  std::vector<FactorPart> factors;
  DeviceBuffer buffer;
  const SpmmStep* steps = nullptr;
  const SpmmTile* tiles = nullptr;
  const int32_t* worker_begin = nullptr;
};

struct DeviceSddmmSchedule {
  int64_t tokens = 0;
  SddmmForm form;
  DeviceBuffer buffer;
  const SddmmUnit* units = nullptr;
  const SddmmSegment* segments = nullptr;
  const int32_t* worker_begin = nullptr;
  const int32_t* reductions = nullptr;
  int reduction_count = 0;
  const int32_t* sum_begin = nullptr;  // nullptr where the schedule has no lists of sums
  const int32_t* sum_segments = nullptr;
  int slot_count = 0;
  int segment_count = 0;
  int worker_steps = 0;
  bool paced = false;
};

class CudaPreparedLayout final : public PreparedLayout {
 public:
  // A weight that others were joined to (Backend::PrepareGroup): its rows and values in the whole.
  struct Part {
    const CudaPreparedLayout* weight = nullptr;
    int64_t out_begin = 0;
    int64_t value_begin = 0;
  };

  // `device` must outlive it.
  CudaPreparedLayout(std::shared_ptr<const DeviceIndex> index, CudaDevice& device);
  // Weights joined to one, `layout`; only the Hopper kernels read such, so there is no index on the
  // device. The parts must outlive it.
  CudaPreparedLayout(SparseLayout layout, std::vector<Part> parts, CudaDevice& device);
  size_t bytes() const override;
  StepUse step_use(int64_t tokens, bool bias_sums) const override {
    return BlockedStepUse(layout(), tokens, bias_sums, device_.card());
  }

  // Not of a joined weight.
  const DeviceLayout& indices() const { return indices_; }
  // Empty where nothing was joined.
  const std::vector<Part>& parts() const { return parts_; }
  // Elements of the values' view: what is stored, and what lies between the parts.
  int64_t value_count() const;
  CudaDevice& device() const { return device_; }

  // Blocked layouts only; made at the first call.
  const BlockIndex& block_index() const;
  // Blocked layouts only. Valid until a later call for the same product.
  const DeviceSpmmSchedule& SpmmScheduleFor(bool transposed, int64_t tokens,
                                            const SpmmTiling& tiling,
                                            std::span<const FactorPart> factors) const;
  const DeviceSddmmSchedule& SddmmScheduleFor(int64_t tokens, int workers,
                                              const SddmmForm& form) const;

 private:
  // The host arrays behind a BsrPattern.
  struct HostPattern {
    std::vector<int> row_begin, col;
    std::vector<int64_t> value_begin;
    BsrPattern view;
  };
  HostPattern Pattern() const;

  CudaDevice& device_;
  std::vector<Part> parts_;
  std::shared_ptr<const DeviceIndex> index_;  // of a joined weight none
  DeviceLayout indices_;
  mutable DeviceBuffer block_buffer_;
  mutable BlockIndex block_index_;
  // Caches, newest first.
  mutable std::list<DeviceSpmmSchedule> forward_, transposed_;
  mutable std::list<DeviceSddmmSchedule> sddmm_;
};

// The prepared layout of a CudaBackend's arguments.
inline const CudaPreparedLayout& Prepared(const PreparedLayout* weight) {
  return static_cast<const CudaPreparedLayout&>(*weight);
}

}  // namespace filigree
