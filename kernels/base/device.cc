#include "kernels/base/device.h"

#include <utility>

namespace filigree {

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this == &other) return *this;
  Free();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  kind_ = std::move(other.kind_);
  owner_ = std::exchange(other.owner_, nullptr);
  deleter_ = std::exchange(other.deleter_, nullptr);
  return *this;
}

TensorView DeviceBuffer::View(DType dtype, int64_t count, size_t first_byte) const {
  CHECK(count >= 0);
  CHECK_EQ(first_byte % SizeOf(dtype), 0u);
  CHECK_LE(first_byte + static_cast<size_t>(count) * SizeOf(dtype), bytes_);
  return TensorView(static_cast<std::byte*>(data_) + first_byte, dtype, {count});
}

void DeviceBuffer::Free() {
  if (deleter_) deleter_(owner_, data_, bytes_, kind_);
  data_ = nullptr;
  deleter_ = nullptr;
}

}  // namespace filigree
