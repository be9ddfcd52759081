#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_graph.h"

namespace filigree {
namespace {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(unsigned flags) { CUDA_CHECK(cudaEventCreateWithFlags(&event_, flags)); }
  ~CudaEvent() override { CUDA_CHECK(cudaEventDestroy(event_)); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void Record(Stream& stream) override {
    CUDA_CHECK(cudaEventRecord(event_, NativeStream(stream)));
  }
  bool Done() const override {
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    CUDA_CHECK(state);
    return true;
  }
  void Synchronize() override { CUDA_CHECK(cudaEventSynchronize(event_)); }
  double MillisecondsSince(const Event& begin) const override {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, NativeEvent(begin), event_));
    return milliseconds;
  }

  cudaEvent_t native() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaStream final : public Stream {
 public:
  explicit CudaStream(StreamPriority priority) {
    int least = 0, greatest = 0;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_CHECK(cudaStreamCreateWithPriority(
        &stream_, cudaStreamNonBlocking, priority == StreamPriority::kUrgent ? greatest : least));
  }
  // What was submitted is finished first: its buffers may be freed next.
  ~CudaStream() override {
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    CUDA_CHECK(cudaStreamDestroy(stream_));
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void Wait(const Event& event) override {
    CUDA_CHECK(cudaStreamWaitEvent(stream_, NativeEvent(event), cudaEventWaitDefault));
  }
  void Synchronize() override { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

  cudaStream_t native() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

std::string Megabytes(size_t bytes) {
  std::ostringstream text;
  text << (bytes + 999'999) / 1'000'000 << " MB";
  return text.str();
}

// The configuration's fields that make a kind of memory smaller.
struct Knob {
  std::string_view kind, fields;
};
constexpr Knob kKnobs[] = {
    {"activations", "a smaller batch.micro_batch_sequences or model.recompute: LAYER"},
    {"moments",
     "parallel.zero_stage: 1 over more ranks, optimizer.moments: EIGHT_BIT or state_dtype: BF16"},
    {"master", "parallel.zero_stage: 1 over more ranks or optimizer.state_dtype: BF16"},
    {"grads", "parallel.grad_dtype: BF16 or optimizer.update: PER_LAYER"},
    {"compute_copies", "parameterisation: block_sparse, which computes on what is stored"},
    {"values", "a higher sparsity"},
    {"layouts", "larger blocks or a higher sparsity"},
    {"recordings", "parallel.graphs: OFF"},
    {"scratch", "a smaller batch.micro_batch_sequences; without parallel.deterministic"},
};

// What a person needs to know to make the run fit. Knobs of what holds most come first, and of what
// holds less than a twentieth are not worth a turn; the allocation that failed counts as held.
std::string OutOfMemory(const CudaDevice& device, size_t bytes, std::string_view kind) {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  std::ostringstream text;
  text << "GPU " << device.ordinal() << " (" << device.model()
       << ") is out of memory: " << Megabytes(bytes) << " needed for " << kind << ", "
       << Megabytes(free) << " free of " << Megabytes(total) << "; held by this process:";
  std::map<std::string, size_t> held = device.memory_usage().bytes_by_kind;
  for (const auto& [name, size] : held) {
    if (size > 0) text << " " << name << " " << Megabytes(size) << ",";
  }
  text << " other programs and libraries have the rest. At least "
       << Megabytes(bytes > free ? bytes - free : 0) << " less are needed. What makes it smaller, "
       << "by what holds most: ";
  held[std::string(kind)] += bytes;
  std::vector<std::pair<size_t, const Knob*>> knobs;
  for (const Knob& knob : kKnobs) {
    const auto found = held.find(std::string(knob.kind));
    if (found == held.end() || found->second < total / 20) continue;
    knobs.emplace_back(found->second, &knob);
  }
  std::ranges::sort(knobs, std::greater<>());
  if (knobs.empty()) knobs.emplace_back(0, &kKnobs[0]);  // the rest is other programs'
  for (const auto& [size, knob] : knobs) text << knob->kind << ": " << knob->fields << "; ";
  text << "`filigree plan` shows the sizes beforehand";
  return text.str();
}

}  // namespace

cudaStream_t NativeStream(Stream& stream) { return static_cast<CudaStream&>(stream).native(); }
cudaEvent_t NativeEvent(const Event& event) {
  return static_cast<const CudaEvent&>(event).native();
}

int CudaDeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no GPU: not an error that a later call should report
  return 0;
}

int64_t CudaBytesInUse() {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

uint64_t CudaDeviceIdentity(int ordinal) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal));
  return RngStream("gpu", std::string_view(properties.uuid.bytes, sizeof(properties.uuid.bytes)));
}

// Dense BF16 products, from NVIDIA's data sheets; the first name that occurs in the model's counts.
double CudaDevice::vendor_peak_flops() const {
  constexpr std::pair<std::string_view, double> kPeaks[] = {
      {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},
      {"H200", 989e12},      {"A100", 312e12},     {"A800", 312e12},
  };
  for (const auto& [name, peak] : kPeaks) {
    if (card_.name.find(name) != std::string::npos) return peak;
  }
  return 0;
}

const GpuCard& CudaCard(const Device& device) {
  return static_cast<const CudaDevice&>(device).card();
}

std::unique_ptr<Device> MakeCudaDevice(int ordinal) {
  return std::make_unique<CudaDevice>(ordinal);
}

CudaDevice::CudaDevice(int ordinal) : ordinal_(ordinal) {
  CHECK(ordinal >= 0 && ordinal < CudaDeviceCount())
      << "GPU " << ordinal << " of " << CudaDeviceCount();
  CUDA_CHECK(cudaSetDevice(ordinal));
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal));
  card_ = {.name = properties.name,
           .compute_capability = 10 * properties.major + properties.minor,
           .multiprocessors = properties.multiProcessorCount,
           .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
}

CudaDevice::~CudaDevice() {
  CHECK_EQ(usage_.total_bytes, 0u) << "a device must outlive its buffers";
}

void CudaDevice::Account(std::string_view kind, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++memory_epoch_;
  Count(kind, bytes);
}

void CudaDevice::AccountRecording(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Count("recordings", bytes);
}

void CudaDevice::Count(std::string_view kind, int64_t bytes) {
  usage_.bytes_by_kind[std::string(kind)] += bytes;
  usage_.total_bytes += bytes;
  usage_.peak_bytes = std::max(usage_.peak_bytes, usage_.total_bytes);
}

DeviceBuffer CudaDevice::Allocate(size_t bytes, std::string_view kind) {
  if (bytes == 0) return DeviceBuffer();
  CUDA_CHECK(cudaSetDevice(ordinal_));
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);  // aligned to 256 bytes at least
  CHECK(error != cudaErrorMemoryAllocation) << OutOfMemory(*this, bytes, kind);
  // Not CUDA_CHECK: nothing goes on without its memory, a lost recording neither.
  CHECK(error == cudaSuccess) << "cudaMalloc: " << cudaGetErrorString(error);
  Account(kind, static_cast<int64_t>(bytes));
  return DeviceBuffer(data, bytes, std::string(kind), this, &CudaDevice::Release);
}

// Host memory is not the device's: it is left out of the account.
DeviceBuffer CudaDevice::AllocatePinned(size_t bytes, std::string_view kind) {
  if (bytes == 0) return DeviceBuffer();
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  CHECK(error != cudaErrorMemoryAllocation)
      << "out of host memory: " << Megabytes(bytes) << " of pinned memory needed for " << kind;
  CHECK(error == cudaSuccess) << "cudaHostAlloc: " << cudaGetErrorString(error);
  return DeviceBuffer(data, bytes, std::string(kind), this, &CudaDevice::ReleasePinned);
}

void CudaDevice::Release(void* owner, void* data, size_t bytes, const std::string& kind) {
  auto* device = static_cast<CudaDevice*>(owner);
  CUDA_CHECK(cudaFree(data));  // waits for the device: nothing under way uses it afterwards
  device->Account(kind, -static_cast<int64_t>(bytes));
}

void CudaDevice::ReleasePinned(void*, void* data, size_t, const std::string&) {
  CUDA_CHECK(cudaFreeHost(data));
}

void CudaDevice::CopyAsync(TensorView dst, ConstTensorView src, Stream& stream) {
  CHECK(dst.dtype() == src.dtype()) << NameOf(dst.dtype()) << " vs " << NameOf(src.dtype());
  CHECK_EQ(dst.rows(), src.rows());
  CHECK_EQ(dst.cols(), src.cols());
  if (dst.size() == 0) return;
  const cudaStream_t native = NativeStream(stream);
  if (dst.contiguous() && src.contiguous()) {
    CUDA_CHECK(cudaMemcpyAsync(dst.data(), src.data(), dst.bytes(), cudaMemcpyDefault, native));
    return;
  }
  const size_t element = SizeOf(dst.dtype());
  CUDA_CHECK(cudaMemcpy2DAsync(dst.data(), dst.row_stride() * element, src.data(),
                               src.row_stride() * element, dst.cols() * element, dst.rows(),
                               cudaMemcpyDefault, native));
}

void CudaDevice::ZeroAsync(TensorView dst, Stream& stream) {
  if (dst.size() == 0) return;
  const cudaStream_t native = NativeStream(stream);
  if (dst.contiguous()) {
    CUDA_CHECK(cudaMemsetAsync(dst.data(), 0, dst.bytes(), native));
    return;
  }
  const size_t element = SizeOf(dst.dtype());
  CUDA_CHECK(cudaMemset2DAsync(dst.data(), dst.row_stride() * element, 0, dst.cols() * element,
                               dst.rows(), native));
}

std::unique_ptr<Stream> CudaDevice::NewStream(StreamPriority priority) {
  return std::make_unique<CudaStream>(priority);
}
std::unique_ptr<Event> CudaDevice::NewEvent() {
  return std::make_unique<CudaEvent>(cudaEventDisableTiming);
}
std::unique_ptr<Event> CudaDevice::NewTimedEvent() {
  return std::make_unique<CudaEvent>(cudaEventDefault);
}

std::unique_ptr<Recording> CudaDevice::Record(const std::function<void()>& submit, Stream& stream) {
  return RecordGraph(submit, *this, NativeStream(stream));
}

uint64_t CudaDevice::memory_epoch() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return memory_epoch_;
}

MemoryUsage CudaDevice::memory_usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

void CudaDevice::ForgetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.peak_bytes = usage_.total_bytes;
}

}  // namespace filigree
