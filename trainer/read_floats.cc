#include "trainer/read_floats.h"

namespace filigree {

std::vector<float> ReadFloats(Device& device, ConstTensorView view, Stream& stream) {
  CHECK(view.dtype() == DType::kF32 || view.dtype() == DType::kBF16) << NameOf(view.dtype());
  std::vector<float> floats(view.size());
  std::vector<BFloat16> halves(view.dtype() == DType::kBF16 ? view.size() : 0);
  void* host = halves.empty() ? static_cast<void*>(floats.data()) : halves.data();
  device.CopyAsync(TensorView(host, view.dtype(), {view.rows(), view.cols()}), view, stream);
  stream.Synchronize();
  for (size_t i = 0; i < halves.size(); ++i) floats[i] = static_cast<float>(halves[i]);
  return floats;
}

}  // namespace filigree
