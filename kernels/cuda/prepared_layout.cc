#include "kernels/cuda/prepared_layout.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/math.h"

namespace filigree {
namespace {

constexpr size_t kKeptSchedules = 4;

// Collects arrays on the host and sends them to the device in one buffer.
class Uploader {
 public:
  // Returns the array's offset in the buffer.
  template <typename T>
  size_t Add(const std::vector<T>& array) {
    const size_t offset = bytes_.size();
    const size_t size = array.size() * sizeof(T);
    bytes_.resize(AlignUp(static_cast<int64_t>(offset + size), kIndexAlignment));
    if (size > 0) std::memcpy(bytes_.data() + offset, array.data(), size);
    return offset;
  }
  DeviceBuffer Upload(CudaDevice& device) const {
    const auto count = static_cast<int64_t>(bytes_.size());
    DeviceBuffer buffer = device.Allocate(bytes_.size(), "layouts");
    const std::unique_ptr<Stream> stream = device.NewStream();
    if (count > 0) {
      device.CopyAsync(buffer.View(DType::kU8, count),
                       ConstTensorView(bytes_.data(), DType::kU8, {count}), *stream);
    }
    stream->Synchronize();
    return buffer;
  }

 private:
  std::vector<std::byte> bytes_;
};

template <typename T>
const T* At(const DeviceBuffer& buffer, size_t offset) {
  return reinterpret_cast<const T*>(static_cast<const std::byte*>(buffer.data()) + offset);
}

// The entry that matches, moved to the front; or none.
template <typename T, typename Matches>
const T* Find(std::list<T>& cache, const Matches& matches) {
  const auto found = std::find_if(cache.begin(), cache.end(), matches);
  if (found == cache.end()) return nullptr;
  cache.splice(cache.begin(), cache, found);
  return &cache.front();
}

template <typename T>
const T& Keep(std::list<T>& cache, T entry) {
  cache.push_front(std::move(entry));
  if (cache.size() > kKeptSchedules)
    cache.pop_back();  // freeing waits for the kernels that read it
  return cache.front();
}

template <typename T>
size_t BytesOf(const std::list<T>& cache) {
  size_t bytes = 0;
  for (const T& entry : cache) bytes += entry.buffer.bytes();
  return bytes;
}

}  // namespace

CudaPreparedLayout::CudaPreparedLayout(std::shared_ptr<const DeviceIndex> index, CudaDevice& device)
    : PreparedLayout(index->layout),
      device_(device),
      index_(std::move(index)),
      indices_(index_->indices()) {}

CudaPreparedLayout::CudaPreparedLayout(SparseLayout layout, std::vector<Part> parts,
                                       CudaDevice& device)
    : PreparedLayout(std::move(layout)), device_(device), parts_(std::move(parts)) {}

int64_t CudaPreparedLayout::value_count() const {
  if (parts_.empty()) return layout().stored_count();
  return parts_.back().value_begin + parts_.back().weight->layout().stored_count();
}

size_t CudaPreparedLayout::bytes() const {
  return (index_ ? index_->buffer.bytes() : 0) + block_buffer_.bytes() + BytesOf(forward_) +
         BytesOf(transposed_) + BytesOf(sddmm_);
}

const BlockIndex& CudaPreparedLayout::block_index() const {
  if (block_buffer_.data() != nullptr) return block_index_;
  CHECK(layout().kind() == LayoutKind::kBlocked) << NameOf(layout().kind());
  CHECK_LE(layout().block_count(), int64_t{std::numeric_limits<int32_t>::max()});
  const SparseLayout::Transposed transposed = layout().Transpose();
  Uploader uploader;
  const auto add = [&](const auto& array) {
    return uploader.Add(std::vector<int32_t>(array.begin(), array.end()));
  };
  const size_t row_offsets = add(layout().row_offsets()), columns = add(layout().columns());
  const size_t column_offsets = add(transposed.column_offsets);
  const size_t rows = add(transposed.rows), slots = add(transposed.slots);
  block_buffer_ = uploader.Upload(device_);
  block_index_ = {At<int32_t>(block_buffer_, row_offsets), At<int32_t>(block_buffer_, columns),
                  At<int32_t>(block_buffer_, column_offsets), At<int32_t>(block_buffer_, rows),
                  At<int32_t>(block_buffer_, slots)};
  return block_index_;
}

CudaPreparedLayout::HostPattern CudaPreparedLayout::Pattern() const {
  CHECK(layout().kind() == LayoutKind::kBlocked) << NameOf(layout().kind());
  HostPattern pattern;
  pattern.row_begin.assign(layout().row_offsets().begin(), layout().row_offsets().end());
  pattern.col.assign(layout().columns().begin(), layout().columns().end());
  pattern.view = {.block = {.rows = layout().block_out(), .cols = layout().block_in()},
                  .block_row_count = static_cast<int>(layout().grid_rows()),
                  .block_col_count = static_cast<int>(layout().grid_cols()),
                  .row_begin = pattern.row_begin,
                  .col = pattern.col};
  const int64_t block = int64_t{layout().block_out()} * layout().block_in();
  for (const Part& part : parts_) {
    for (int64_t p = 0; p < part.weight->layout().block_count(); ++p) {
      pattern.value_begin.push_back(part.value_begin + p * block);
    }
  }
  pattern.view.value_begin = pattern.value_begin;
  return pattern;
}

const DeviceSpmmSchedule& CudaPreparedLayout::SpmmScheduleFor(
    bool transposed, int64_t tokens, const SpmmTiling& tiling,
    std::span<const FactorPart> factors) const {
  std::list<DeviceSpmmSchedule>& cache = transposed ? transposed_ : forward_;
  const auto matches = [&](const DeviceSpmmSchedule& entry) {
    return entry.tokens == tokens && entry.tiling == tiling &&
           std::equal(entry.factors.begin(), entry.factors.end(), factors.begin(), factors.end());
  };
  if (const DeviceSpmmSchedule* found = Find(cache, matches)) return *found;
  const HostPattern pattern = Pattern();
  const SpmmSchedule host = BuildSpmmSchedule(pattern.view, transposed, tokens, tiling, factors);
  Uploader uploader;
  const size_t steps = uploader.Add(host.steps), tiles = uploader.Add(host.tiles);
  const size_t begins = uploader.Add(host.worker_begin);
  DeviceSpmmSchedule entry;
  entry.tokens = tokens;
  entry.tiling = tiling;
  entry.factors.assign(factors.begin(), factors.end());
  entry.buffer = uploader.Upload(device_);
  entry.steps = At<SpmmStep>(entry.buffer, steps);
  entry.tiles = At<SpmmTile>(entry.buffer, tiles);
  entry.worker_begin = At<int32_t>(entry.buffer, begins);
  return Keep(cache, std::move(entry));
}

const DeviceSddmmSchedule& CudaPreparedLayout::SddmmScheduleFor(int64_t tokens, int workers,
                                                                const SddmmForm& form) const {
  const auto matches = [&](const DeviceSddmmSchedule& entry) {
    return entry.tokens == tokens && entry.form == form;
  };
  if (const DeviceSddmmSchedule* found = Find(sddmm_, matches)) return *found;
  const HostPattern pattern = Pattern();
  const SddmmSchedule host = BuildSddmmSchedule(pattern.view, tokens, workers, form);
  Uploader uploader;
  const size_t units = uploader.Add(host.units), segments = uploader.Add(host.segments);
  const size_t begins = uploader.Add(host.worker_begin);
  const size_t reductions = uploader.Add(host.reductions);
  const size_t sum_begin = uploader.Add(host.sum_begin);
  const size_t sum_segments = uploader.Add(host.sum_segments);
  DeviceSddmmSchedule entry;
  entry.tokens = tokens;
  entry.form = form;
  entry.buffer = uploader.Upload(device_);
  entry.units = At<SddmmUnit>(entry.buffer, units);
  entry.segments = At<SddmmSegment>(entry.buffer, segments);
  entry.worker_begin = At<int32_t>(entry.buffer, begins);
  entry.reductions = At<int32_t>(entry.buffer, reductions);
  entry.reduction_count = static_cast<int>(host.reductions.size());
  entry.slot_count = host.slot_count;
  entry.segment_count = static_cast<int>(host.segments.size());
  entry.worker_steps = host.worker_steps;
  entry.paced = host.paced;
  if (!host.sum_begin.empty()) {
    entry.sum_begin = At<int32_t>(entry.buffer, sum_begin);
    entry.sum_segments = At<int32_t>(entry.buffer, sum_segments);
  }
  return Keep(sddmm_, std::move(entry));
}

}  // namespace filigree
