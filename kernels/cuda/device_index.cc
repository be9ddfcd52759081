#include "kernels/cuda/device_index.h"

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {
namespace {

template <typename Column>
void Narrow(std::span<const int32_t> columns, std::byte* to) {
  auto* narrow = reinterpret_cast<Column*>(to);
  for (size_t i = 0; i < columns.size(); ++i) narrow[i] = static_cast<Column>(columns[i]);
}

DeviceBuffer Upload(const SparseLayout& layout, CudaDevice& device) {
  const IndexPlaces places =
      PlacesOf(layout.grid_rows(), layout.grid_cols(), layout.block_count());
  std::vector<std::byte> host(places.bytes);
  const auto offsets = layout.row_offsets();
  auto* row_offsets = reinterpret_cast<uint32_t*>(host.data());
  for (size_t i = 0; i < offsets.size(); ++i) row_offsets[i] = static_cast<uint32_t>(offsets[i]);
  places.short_columns ? Narrow<uint16_t>(layout.columns(), host.data() + places.columns)
                       : Narrow<uint32_t>(layout.columns(), host.data() + places.columns);
  DeviceBuffer buffer = device.Allocate(places.bytes, "layouts");
  const std::unique_ptr<Stream> stream = device.NewStream();
  const auto count = static_cast<int64_t>(places.bytes);
  device.CopyAsync(buffer.View(DType::kU8, count),
                   ConstTensorView(host.data(), DType::kU8, {count}), *stream);
  stream->Synchronize();
  return buffer;
}

}  // namespace

IndexPlaces PlacesOf(int64_t grid_rows, int64_t grid_cols, int64_t block_count) {
  CHECK_LE(block_count, int64_t{std::numeric_limits<uint32_t>::max()});
  IndexPlaces places;
  places.short_columns = grid_cols <= int64_t{1} << 16;
  const auto in_buffer = [](int64_t count, size_t size) {
    return static_cast<size_t>(AlignUp(count * static_cast<int64_t>(size), kIndexAlignment));
  };
  places.columns = in_buffer(grid_rows + 1, sizeof(uint32_t));
  places.bytes = places.columns + in_buffer(block_count, places.short_columns ? sizeof(uint16_t)
                                                                              : sizeof(uint32_t));
  return places;
}

DeviceLayout DeviceIndex::indices() const {
  if (layout.kind() == LayoutKind::kDense) return {};
  const IndexPlaces places =
      PlacesOf(layout.grid_rows(), layout.grid_cols(), layout.block_count());
  const auto* data = static_cast<const std::byte*>(buffer.data());
  return {reinterpret_cast<const uint32_t*>(data), data + places.columns, places.short_columns};
}

std::shared_ptr<const DeviceIndex> DeviceIndices::Find(const SparseLayout& layout) {
  auto [entry, end] = held_.equal_range(layout.fingerprint());
  while (entry != end) {
    const std::shared_ptr<const DeviceIndex> index = entry->second.lock();
    if (!index) {
      entry = held_.erase(entry);
      continue;
    }
    if (index->layout == layout) return index;
    ++entry;
  }
  return nullptr;
}

std::shared_ptr<const DeviceIndex> DeviceIndices::Of(const SparseLayout& layout) {
  if (std::shared_ptr<const DeviceIndex> found = Find(layout)) return found;
  const bool dense = layout.kind() == LayoutKind::kDense;
  return Of(layout, dense ? DeviceBuffer() : Upload(layout, device_));
}

std::shared_ptr<const DeviceIndex> DeviceIndices::Of(const SparseLayout& layout,
                                                     DeviceBuffer filled) {
  if (std::shared_ptr<const DeviceIndex> found = Find(layout)) return found;
  std::erase_if(held_, [](const auto& entry) { return entry.second.expired(); });
  auto index = std::make_shared<const DeviceIndex>(DeviceIndex{layout, std::move(filled)});
  held_.emplace(layout.fingerprint(), index);
  return index;
}

}  // namespace filigree
