// The indices of layouts in device memory, one copy for all who prepare the same layout.
//
// Models, topology events and moves of state prepare a layout again and again; its indices travel
// once, or never, where they were made on the device (unit_layout.cu). They live as long as
// somebody holds them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "kernels/sparse/layout.h"

namespace filigree {

// The indices as kernels read them; columns have 16 bits where the grid's width allows.
struct DeviceLayout {
  const uint32_t* row_offsets = nullptr;  // [grid rows + 1], counted in cells or blocks
  const void* columns = nullptr;          // [cells or blocks] uint16_t or uint32_t
  bool short_columns = false;
};

// Where a layout's arrays begin in its buffer, in bytes: row offsets first.
struct IndexPlaces {
  bool short_columns = false;
  size_t columns = 0, bytes = 0;
};
IndexPlaces PlacesOf(int64_t grid_rows, int64_t grid_cols, int64_t block_count);

struct DeviceIndex {
  SparseLayout layout;
  DeviceBuffer buffer;  // nothing of a dense layout
  DeviceLayout indices() const;
};

class DeviceIndices {
 public:
  // `device` must outlive it.
  explicit DeviceIndices(CudaDevice& device) : device_(device) {}

  // Of that layout: what somebody holds, else sent to the device.
  std::shared_ptr<const DeviceIndex> Of(const SparseLayout& layout);
  // The same for a buffer that is filled already, which goes where somebody holds another.
  std::shared_ptr<const DeviceIndex> Of(const SparseLayout& layout, DeviceBuffer filled);

 private:
  std::shared_ptr<const DeviceIndex> Find(const SparseLayout& layout);

  CudaDevice& device_;
  std::multimap<uint64_t, std::weak_ptr<const DeviceIndex>> held_;  // by fingerprint
};

}  // namespace filigree
