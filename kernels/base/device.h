// Devices: where memory lives and where operations run. CPU and CUDA implement this one interface.
//
// Asynchrony is explicit: every copy and every operation takes a Stream, and there is no default
// stream. On the CPU, streams run inline and events are always complete, so the same host code is
// correct on both. No managed memory, no hidden copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/tensor_view.h"

namespace filigree {

class Stream;

// A point in a stream's work.
class Event {
 public:
  virtual ~Event() = default;
  // Marks everything submitted to `stream` so far.
  virtual void Record(Stream& stream) = 0;
  // True once the marked work is done (also before the first Record).
  virtual bool Done() const = 0;
  virtual void Synchronize() = 0;
  // From the work that `begin` marked to this event's. Both come from NewTimedEvent, and are done.
  virtual double MillisecondsSince(const Event& begin) const = 0;
};

// An ordered queue of work on a device.
class Stream {
 public:
  virtual ~Stream() = default;
  // Work submitted from now on starts after `event`.
  virtual void Wait(const Event& event) = 0;
  virtual void Synchronize() = 0;
};

// Work on a stream that was recorded instead of begun, to be submitted as a whole, again and again.
// It reads and writes the memory that it was recorded with: see Device::memory_epoch.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void Submit(Stream& stream) = 0;
};

// Device (or pinned host) memory with one owner; move-only; frees itself.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  using Deleter = void (*)(void* owner, void* data, size_t bytes, const std::string& kind);
  DeviceBuffer(void* data, size_t bytes, std::string kind, void* owner, Deleter deleter)
      : data_(data), bytes_(bytes), kind_(std::move(kind)), owner_(owner), deleter_(deleter) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer() { Free(); }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // The buffer as a vector of `count` elements from `first_byte` on.
  TensorView View(DType dtype, int64_t count, size_t first_byte = 0) const;

 private:
  void Free();

  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::string kind_;
  void* owner_ = nullptr;
  Deleter deleter_ = nullptr;
};

// Bytes held now and at the peak, by kind ("values", "grads", "master", "moments", "layouts",
// "compute_copies", "activations", "scratch"; "recordings", as far as the driver says what it took
// for them), as `plan` and the metrics print them.
struct MemoryUsage {
  std::map<std::string, size_t> bytes_by_kind;
  size_t total_bytes = 0;
  size_t peak_bytes = 0;
};

// Work of an urgent stream gets a free multiprocessor before work of others that waits for one.
enum class StreamPriority { kNormal, kUrgent };

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;
  // The dtype of activations and of the values that compute reads: F32 on the CPU, BF16 on CUDA.
  virtual DType compute_dtype() const = 0;
  // The vendor's figure for matrix products in that dtype, FLOP/s; 0 where there is none.
  virtual double vendor_peak_flops() const { return 0; }
  // Matrices whose width is the model's choice (the feed-forward's) are as wide inside as the next
  // multiple of this many elements, the rest zero: what products need to run at full speed.
  virtual int64_t row_alignment() const = 0;
  // Uninitialised memory, aligned to 256 bytes. Running out of it is fatal: the message says what
  // was needed and what was free. The device must outlive its buffers.
  virtual DeviceBuffer Allocate(size_t bytes, std::string_view kind) = 0;
  // Host memory that asynchronous copies can read and write.
  virtual DeviceBuffer AllocatePinned(size_t bytes, std::string_view kind) = 0;
  // Same shape and dtype on both sides; either may be host or device memory; rows may be strided.
  virtual void CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) = 0;
  virtual void ZeroAsync(TensorView dst, Stream& stream) = 0;
  virtual std::unique_ptr<Stream> NewStream(StreamPriority priority) = 0;
  std::unique_ptr<Stream> NewStream() { return NewStream(StreamPriority::kNormal); }
  virtual std::unique_ptr<Event> NewEvent() = 0;
  // One that also knows when it was done, which costs a little: for benchmarks.
  virtual std::unique_ptr<Event> NewTimedEvent() = 0;
  // Calls `submit` and records what it submits to `stream`, of which nothing begins. It must touch
  // no other stream, event or host memory, and must have run once before, so that nothing is
  // allocated. Devices on which work costs nothing to submit return nullptr and call nothing. Where
  // the device cannot record, or cannot hold the recording, it returns nullptr too and logs why.
  virtual std::unique_ptr<Recording> Record(const std::function<void()>& submit, Stream& stream) {
    return nullptr;
  }
  // Grows whenever device memory is allocated or freed, but for that of recordings: what was
  // recorded before may name memory that is gone.
  virtual uint64_t memory_epoch() const { return 0; }
  virtual MemoryUsage memory_usage() const = 0;
  // From here on the peak is that of what is held now and later.
  virtual void ForgetPeak() = 0;
};

}  // namespace filigree
