#include "kernels/cuda/spmm_kernel_sm90.cuh"
#include "kernels/cuda/spmm_launch_sm90.h"

namespace filigree::sm90 {

void LaunchSpmmSwiGlu(int features, int cluster, const SpmmParams& params, int workers,
                      cudaStream_t stream) {
  LaunchSpmmKernel<false, SpmmFinish::kSwiGlu>(features, cluster, params, workers, stream);
}

}  // namespace filigree::sm90
