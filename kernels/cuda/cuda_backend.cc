#include "kernels/cuda/cuda_backend.h"

#include "kernels/base/log.h"
#include "kernels/cuda/attention_plans.h"
#include "kernels/cuda/cuda_factory.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {
namespace {

// Of the Hopper SDDMM: those of its pace, then its arrivals.
constexpr int64_t kSddmmCounters = kSddmmPaceWindows + 1 + kSddmmArrivals;

}  // namespace

uint32_t* CudaBackend::sddmm_arrivals() { return sddmm_pace() + kSddmmPaceWindows + 1; }

CudaBackend::CudaBackend(CudaDevice& device)
    : device_(device),
      workspace_(device.Allocate(kWorkspaceBytes, "scratch")),
      sum_counter_(device.Allocate(sizeof(uint32_t), "scratch")),
      sddmm_counters_(device.Allocate(kSddmmCounters * sizeof(uint32_t), "scratch")),
      indices_(device),
      matmul_plans_(std::make_unique<MatMulPlans>(device)),
      attention_plans_(std::make_unique<AttentionPlans>()) {
  const std::unique_ptr<Stream> stream = device.NewStream();
  device.ZeroAsync(sum_counter_.View(DType::kU32, 1), *stream);
  device.ZeroAsync(sddmm_counters_.View(DType::kU32, kSddmmCounters), *stream);
  stream->Synchronize();
  if (!AttentionPlans::Available()) {
    LogWarning("built without cuDNN: attention takes plain kernels, which are several times slower; "
               "launch/setup.sh brings what is missing, then configure and build again");
  }
}

CudaBackend::~CudaBackend() = default;

std::byte* CudaBackend::Reserve(DeviceBuffer* buffer, size_t bytes) {
  if (bytes > buffer->bytes()) {
    *buffer = DeviceBuffer();  // first the old one: both might not fit. Waits for its users
    *buffer = device_.Allocate(bytes, "scratch");
  }
  return static_cast<std::byte*>(buffer->data());
}

std::byte* CudaBackend::Landing(size_t bytes) {
  if (bytes > landing_.bytes()) {
    landing_ = DeviceBuffer();
    landing_ = device_.AllocatePinned(bytes, "scratch");
  }
  return static_cast<std::byte*>(landing_.data());
}

std::unique_ptr<Backend> MakeCudaBackend(Device& device) {
  return std::make_unique<CudaBackend>(static_cast<CudaDevice&>(device));
}

}  // namespace filigree
