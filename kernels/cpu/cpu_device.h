// Host memory as a Device. Streams run inline: an operation is done when its call returns, and
// events are always complete.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "kernels/base/device.h"

namespace filigree {

class CpuDevice final : public Device {
 public:
  // F32 and rows as they are for every run; F64 for gradient tests against finite differences, and
  // wider rows for tests of what a GPU asks for. BF16 stands in for a GPU where sizes are planned:
  // the CPU computes nothing in it.
  explicit CpuDevice(DType compute_dtype = DType::kF32, int64_t row_alignment = 1);
  // Every buffer must be gone.
  ~CpuDevice() override;
  CpuDevice(const CpuDevice&) = delete;
  CpuDevice& operator=(const CpuDevice&) = delete;

  std::string_view name() const override { return "cpu"; }
  DType compute_dtype() const override { return compute_dtype_; }
  int64_t row_alignment() const override { return row_alignment_; }
  DeviceBuffer Allocate(size_t bytes, std::string_view kind) override;
  // The same as Allocate: all host memory can be copied.
  DeviceBuffer AllocatePinned(size_t bytes, std::string_view kind) override;
  void CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) override;
  void ZeroAsync(TensorView dst, Stream& stream) override;
  using Device::NewStream;
  std::unique_ptr<Stream> NewStream(StreamPriority) override;
  std::unique_ptr<Event> NewEvent() override;
  std::unique_ptr<Event> NewTimedEvent() override { return NewEvent(); }
  MemoryUsage memory_usage() const override;
  void ForgetPeak() override;

 private:
  static void Release(void* owner, void* data, size_t bytes, const std::string& kind);

  const DType compute_dtype_;
  const int64_t row_alignment_;
  mutable std::mutex mutex_;  // guards usage_
  MemoryUsage usage_;
};

}  // namespace filigree
