#include "trainer/peak_flops.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/base/rng.h"

namespace filigree {
namespace {

// Well past the sizes at which a matrix product reaches its rate, on a processor and on a GPU.
constexpr int64_t kProcessorSize = 768, kGpuSize = 4096;
constexpr int kRepeats = 12;

// Numbers of all signs and sizes, repeated: zeros would draw less power and flatter the device.
void Fill(Device& device, TensorView view, Stream& stream) {
  std::vector<float> floats(view.size());
  std::vector<BFloat16> halves(view.size());
  constexpr int64_t kDrawn = kProcessorSize * kProcessorSize;
  for (int64_t i = 0; i < view.size(); ++i) {
    floats[i] = i < kDrawn ? static_cast<float>(RandomUniform(0, RngStream("peak"), i)) - 0.5f
                           : floats[i - kDrawn];
    halves[i] = BFloat16(floats[i]);
  }
  const void* source = view.dtype() == DType::kBF16 ? static_cast<const void*>(halves.data())
                                                    : static_cast<const void*>(floats.data());
  device.CopyAsync(view, ConstTensorView(source, view.dtype(), {view.size()}), stream);
  stream.Synchronize();
}

double Measure(Backend& backend) {
  Device& device = backend.device();
  const DType dtype = device.compute_dtype();
  const int64_t size = dtype == DType::kBF16 ? kGpuSize : kProcessorSize;
  const size_t bytes = size * size * SizeOf(dtype);
  const auto stream = device.NewStream();
  DeviceBuffer buffers[3];
  for (DeviceBuffer& buffer : buffers) {
    buffer = device.Allocate(bytes, "scratch");
    Fill(device, buffer.View(dtype, size * size), *stream);
  }
  MatMulArgs args;
  args.a = buffers[0].View(dtype, size * size).Reshape({size, size});
  args.b = buffers[1].View(dtype, size * size).Reshape({size, size});
  args.out = buffers[2].View(dtype, size * size).Reshape({size, size});
  args.transpose_b = true;
  double best_seconds = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    stream->Synchronize();
    const auto begin = std::chrono::steady_clock::now();
    backend.MatMul(args, *stream);
    stream->Synchronize();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    best_seconds = std::min(best_seconds, elapsed.count());
  }
  return 2.0 * static_cast<double>(size * size * size) / best_seconds;
}

}  // namespace

PeakFlops PeakFlops::Of(Backend& backend, double given, int ranks) {
  if (given <= 0) given = backend.device().vendor_peak_flops();
  return given > 0 ? PeakFlops(ranks * given, /*measured=*/false)
                   : PeakFlops(ranks * Measure(backend), /*measured=*/true);
}

void PeakFlops::Reached(double executed) {
  if (!(executed > flops_)) return;
  if (measured_) {
    flops_ = executed;
  } else {
    exceeded_ = true;
  }
}

std::optional<double> PeakFlops::Share(double flops) const {
  if (exceeded_) return std::nullopt;
  return flops / flops_;
}

}  // namespace filigree
