#include "kernels/cpu/cpu_device.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

constexpr int64_t kAlignment = 256;
// Linux hands out memory that it does not have and kills the process later, without a message: so
// requests of this size and more are compared with what is available.
constexpr size_t kCheckedBytes = 64 << 20;

class CpuStream final : public Stream {
 public:
  void Wait(const Event&) override {}
  void Synchronize() override {}
};

class CpuEvent final : public Event {
 public:
  void Record(Stream&) override { time_ = std::chrono::steady_clock::now(); }
  bool Done() const override { return true; }
  void Synchronize() override {}
  double MillisecondsSince(const Event& begin) const override {
    const std::chrono::duration<double, std::milli> elapsed =
        time_ - static_cast<const CpuEvent&>(begin).time_;
    return elapsed.count();
  }

 private:
  std::chrono::steady_clock::time_point time_;
};

size_t AvailableBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  size_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<size_t>::max();
}

}  // namespace

CpuDevice::CpuDevice(DType compute_dtype, int64_t row_alignment)
    : compute_dtype_(compute_dtype), row_alignment_(row_alignment) {
  CHECK(compute_dtype == DType::kF32 || compute_dtype == DType::kF64 ||
        compute_dtype == DType::kBF16)
      << "the CPU computes in F32 or F64, and plans in BF16, not in " << NameOf(compute_dtype);
}

CpuDevice::~CpuDevice() { CHECK_EQ(usage_.total_bytes, 0u) << "a device must outlive its buffers"; }

DeviceBuffer CpuDevice::Allocate(size_t bytes, std::string_view kind) {
  if (bytes == 0) return DeviceBuffer();
  const size_t available =
      bytes >= kCheckedBytes ? AvailableBytes() : std::numeric_limits<size_t>::max();
  void* data = nullptr;
  if (bytes <= available) {
    data = std::aligned_alloc(kAlignment, AlignUp(static_cast<int64_t>(bytes), kAlignment));
  }
  CHECK(data != nullptr) << "out of memory: " << bytes << " bytes needed for " << kind << ", "
                         << AvailableBytes() << " available";
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.bytes_by_kind[std::string(kind)] += bytes;
  usage_.total_bytes += bytes;
  usage_.peak_bytes = std::max(usage_.peak_bytes, usage_.total_bytes);
  return DeviceBuffer(data, bytes, std::string(kind), this, &CpuDevice::Release);
}

DeviceBuffer CpuDevice::AllocatePinned(size_t bytes, std::string_view kind) {
  return Allocate(bytes, kind);
}

void CpuDevice::Release(void* owner, void* data, size_t bytes, const std::string& kind) {
  auto* device = static_cast<CpuDevice*>(owner);
  std::free(data);
  std::lock_guard<std::mutex> lock(device->mutex_);
  device->usage_.bytes_by_kind[kind] -= bytes;
  device->usage_.total_bytes -= bytes;
}

void CpuDevice::CopyAsync(TensorView dst, ConstTensorView src, Stream&) {
  CHECK(dst.dtype() == src.dtype()) << NameOf(dst.dtype()) << " vs " << NameOf(src.dtype());
  CHECK_EQ(dst.rows(), src.rows());
  CHECK_EQ(dst.cols(), src.cols());
  if (dst.size() == 0) return;
  const size_t element = SizeOf(dst.dtype());
  if (dst.contiguous() && src.contiguous()) {
    std::memcpy(dst.data(), src.data(), dst.bytes());
    return;
  }
  for (int64_t i = 0; i < dst.rows(); ++i) {
    std::memcpy(static_cast<std::byte*>(dst.data()) + i * dst.row_stride() * element,
                static_cast<const std::byte*>(src.data()) + i * src.row_stride() * element,
                dst.cols() * element);
  }
}

void CpuDevice::ZeroAsync(TensorView dst, Stream&) {
  if (dst.size() == 0) return;
  const size_t element = SizeOf(dst.dtype());
  if (dst.contiguous()) {
    std::memset(dst.data(), 0, dst.bytes());
    return;
  }
  for (int64_t i = 0; i < dst.rows(); ++i) {
    std::memset(static_cast<std::byte*>(dst.data()) + i * dst.row_stride() * element, 0,
                dst.cols() * element);
  }
}

std::unique_ptr<Stream> CpuDevice::NewStream(StreamPriority) {
  return std::make_unique<CpuStream>();
}
std::unique_ptr<Event> CpuDevice::NewEvent() { return std::make_unique<CpuEvent>(); }

MemoryUsage CpuDevice::memory_usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

void CpuDevice::ForgetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.peak_bytes = usage_.total_bytes;
}

}  // namespace filigree
