#include "trainer/master_columns.h"

#include <algorithm>

#include "trainer/device_segments.h"
#include "trainer/master_weights.h"

namespace filigree {
namespace {

template <typename T>
DeviceBuffer Upload(const std::vector<T>& host, Device& device, Stream& stream) {
  const auto count = static_cast<int64_t>(host.size());
  DeviceBuffer buffer = device.Allocate(host.size() * sizeof(T), "scratch");
  device.CopyAsync(buffer.View(DTypeOf<T>::value, count),
                   ConstTensorView(host.data(), DTypeOf<T>::value, {count}), stream);
  return buffer;
}

}  // namespace

void MasterColumns::Add(const std::string& weight, int64_t begin, std::span<const int64_t> gone,
                        const ColumnUpdate& update) {
  if (update.rest.empty()) return;
  blocks_.push_back({.parameter = IndexOf(state_.parameters(), weight),
                     .columns = static_cast<int64_t>(columns_.size()),
                     .factors = static_cast<int64_t>(factors_.size()),
                     .gone = static_cast<int64_t>(gone.size()),
                     .rest = static_cast<int64_t>(update.rest.size())});
  for (const int64_t column : gone) columns_.push_back(static_cast<int32_t>(begin + column));
  for (const int64_t column : update.rest) {
    columns_.push_back(static_cast<int32_t>(begin + column));
  }
  factors_.insert(factors_.end(), update.factors.begin(), update.factors.end());
}

TensorView MasterColumns::Whole(int parameter) {
  const FlatBuffer& buffer = state_.buffer();
  if (HoldsWhole(buffer, parameter, StateKind::kMaster)) {
    return buffer.Master(buffer.layout().Owned(parameter, buffer.shard()));
  }
  const int64_t count = state_.parameters()[parameter].segment_count();
  const TensorView memory = gathered_.View(DType::kF32, count);
  GatherOnDevice(buffer, parameter, StateKind::kMaster, memory, communicator_, backend_, stream_);
  if (buffer.layout().shards() > 1) *bytes_ += static_cast<int64_t>(memory.bytes());
  return memory;
}

int64_t MasterColumns::Largest() const {
  int64_t largest = 0;
  for (const Block& block : blocks_) {
    largest = std::max(largest, state_.parameters()[block.parameter].segment_count());
  }
  return largest;
}

void MasterColumns::Apply() {
  if (blocks_.empty()) return;
  std::ranges::stable_sort(blocks_, {}, &Block::parameter);
  Device& device = backend_.device();
  const auto largest = static_cast<size_t>(Largest());
  // Masters are held alike.
  if (!HoldsWhole(state_.buffer(), blocks_.front().parameter, StateKind::kMaster)) {
    gathered_ = device.Allocate(largest * sizeof(float), "scratch");
  }
  const DeviceBuffer columns = Upload(columns_, device, stream_);
  const DeviceBuffer factors = Upload(factors_, device, stream_);
  for (size_t first = 0, end = 0; first < blocks_.size(); first = end) {
    const int parameter = blocks_[first].parameter;
    const Parameter& weight = state_.parameters()[parameter];
    const int64_t pitch = weight.layout.row_pitch();
    const TensorView whole = Whole(parameter);
    const TensorView matrix =
        whole.Range(0, weight.layout.out() * pitch).Reshape({weight.layout.out(), pitch});
    for (; end < blocks_.size() && blocks_[end].parameter == parameter; ++end) {
      const Block& block = blocks_[end];
      const auto ints = columns.View(DType::kI32, static_cast<int64_t>(columns_.size()));
      const auto doubles = factors.View(DType::kF64, static_cast<int64_t>(factors_.size()));
      backend_.AddColumns({.weight = matrix,
                           .gone = ints.Range(block.columns, block.gone),
                           .rest = ints.Range(block.columns + block.gone, block.rest),
                           .factors = doubles.Range(block.factors, block.gone * block.rest)},
                          stream_);
    }
    ScatterOnDevice(state_.buffer(), parameter, StateKind::kMaster, whole, /*halves=*/{}, backend_,
                    stream_);
  }
  stream_.Synchronize();  // the uploads are read until then
}

}  // namespace filigree
