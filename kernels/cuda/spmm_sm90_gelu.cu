#include "kernels/cuda/spmm_kernel_sm90.cuh"
#include "kernels/cuda/spmm_launch_sm90.h"

namespace filigree::sm90 {

void LaunchSpmmGelu(int features, int cluster, bool deep_ring, const SpmmParams& params,
                    int workers, cudaStream_t stream) {
  if (deep_ring) {
    return LaunchSpmmDeepRing<false, SpmmFinish::kGelu>(cluster, params, workers, stream);
  }
  LaunchSpmmKernel<false, SpmmFinish::kGelu>(features, cluster, params, workers, stream);
}

}  // namespace filigree::sm90
