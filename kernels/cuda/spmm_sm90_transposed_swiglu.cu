#include "kernels/cuda/spmm_kernel_sm90.cuh"
#include "kernels/cuda/spmm_launch_sm90.h"

namespace filigree::sm90 {

void LaunchSpmmTransposedSwiGluBackward(int features, int cluster, const SpmmParams& params,
                                        int workers, cudaStream_t stream) {
  LaunchSpmmKernel<true, SpmmFinish::kSwiGluBackward>(features, cluster, params, workers, stream);
}

}  // namespace filigree::sm90
