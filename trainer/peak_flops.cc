#include "trainer/peak_flops.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/base/rng.h"

namespace filigree {
namespace {

constexpr int64_t kSize = 768;  // well past the size at which a matrix product reaches its rate
constexpr int kRepeats = 4;

// Numbers of all signs and sizes: zeros would draw less power and flatter the device.
void Fill(Device& device, TensorView view, Stream& stream) {
  std::vector<float> floats(view.size());
  std::vector<BFloat16> halves(view.size());
  for (int64_t i = 0; i < view.size(); ++i) {
    floats[i] = static_cast<float>(RandomUniform(0, RngStream("peak"), i)) - 0.5f;
    halves[i] = BFloat16(floats[i]);
  }
  const void* source = view.dtype() == DType::kBF16 ? static_cast<const void*>(halves.data())
                                                    : static_cast<const void*>(floats.data());
  device.CopyAsync(view, ConstTensorView(source, view.dtype(), {view.size()}), stream);
  stream.Synchronize();
}

}  // namespace

double PeakFlops(Backend& backend) {
  Device& device = backend.device();
  const DType dtype = device.compute_dtype();
  const size_t bytes = kSize * kSize * SizeOf(dtype);
  const auto stream = device.NewStream();
  DeviceBuffer buffers[3];
  for (DeviceBuffer& buffer : buffers) {
    buffer = device.Allocate(bytes, "scratch");
    Fill(device, buffer.View(dtype, kSize * kSize), *stream);
  }
  MatMulArgs args;
  args.a = buffers[0].View(dtype, kSize * kSize).Reshape({kSize, kSize});
  args.b = buffers[1].View(dtype, kSize * kSize).Reshape({kSize, kSize});
  args.out = buffers[2].View(dtype, kSize * kSize).Reshape({kSize, kSize});
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
  return 2.0 * kSize * kSize * kSize / best_seconds;
}

}  // namespace filigree
