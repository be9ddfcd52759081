// A build without cuSPARSELt's header: 2:4 weights are multiplied densely.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/trace.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {

std::unique_ptr<TwoFourWeight> CudaBackend::PrepareTwoFour(ConstTensorView weight,
                                                           TwoFourKind kind) {
  if (CompressedBytes(weight.rows(), weight.cols(), kind, device_.card()) > 0) {
    TraceChoice("2:4", "weights", "multiplied densely, this was built without cuSPARSELt's header");
  }
  return nullptr;
}

int64_t CudaBackend::TwoFourBytes(int64_t, int64_t, TwoFourKind) const { return 0; }

}  // namespace filigree
