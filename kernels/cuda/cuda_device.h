// One NVIDIA GPU as a Device: memory by kind, streams, events, asynchronous copies.
//
// Memory comes from cudaMalloc (never managed); pinned host memory from cudaHostAlloc. A device out
// of memory is fatal: the message says what was needed, what was free and which settings need less.
// Streams do not synchronise with the legacy default stream, which nothing here uses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "kernels/base/device.h"
#include "kernels/cuda/cuda_factory.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {

class CudaDevice final : public Device {
 public:
  // Takes GPU `ordinal` of those visible to this process and makes it the thread's current one.
  explicit CudaDevice(int ordinal);
  // Every buffer must be gone.
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  std::string_view name() const override { return "cuda"; }
  DType compute_dtype() const override { return DType::kBF16; }
  double vendor_peak_flops() const override;
  int64_t row_alignment() const override { return kGpuRowAlignment; }
  DeviceBuffer Allocate(size_t bytes, std::string_view kind) override;
  DeviceBuffer AllocatePinned(size_t bytes, std::string_view kind) override;
  void CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) override;
  void ZeroAsync(TensorView dst, Stream& stream) override;
  using Device::NewStream;
  std::unique_ptr<Stream> NewStream(StreamPriority priority) override;
  std::unique_ptr<Event> NewEvent() override;
  std::unique_ptr<Event> NewTimedEvent() override;
  std::unique_ptr<Recording> Record(const std::function<void()>& submit, Stream& stream) override;
  uint64_t memory_epoch() const override;
  MemoryUsage memory_usage() const override;
  void ForgetPeak() override;

  // Counts memory that a library allocates here for arrays of ours; negative: it was freed.
  void Account(std::string_view kind, int64_t bytes);
  // The same for recordings, which no other recording names.
  void AccountRecording(int64_t bytes);

  int ordinal() const { return ordinal_; }
  // "NVIDIA H100 80GB HBM3".
  const std::string& model() const { return card_.name; }
  int multiprocessors() const { return card_.multiprocessors; }
  // 90 for compute capability 9.0.
  int compute_capability() const { return card_.compute_capability; }
  const GpuCard& card() const { return card_; }

 private:
  void Count(std::string_view kind, int64_t bytes);  // under the mutex
  static void Release(void* owner, void* data, size_t bytes, const std::string& kind);
  static void ReleasePinned(void* owner, void* data, size_t bytes, const std::string& kind);

  const int ordinal_;
  GpuCard card_;
  mutable std::mutex mutex_;  // guards usage_ and memory_epoch_
  MemoryUsage usage_;
  uint64_t memory_epoch_ = 0;
};

// The CUDA handles behind a CudaDevice's streams and events.
cudaStream_t NativeStream(Stream& stream);
cudaEvent_t NativeEvent(const Event& event);

}  // namespace filigree
