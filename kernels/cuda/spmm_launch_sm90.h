// The instantiations of SpmmBsrKernel, by product and finish: spmm_sm90_*.cu, one each.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/spmm_shape_sm90.cuh"

namespace filigree::sm90 {

void LaunchSpmmStore(int features, int cluster, bool deep_ring, const SpmmParams& params,
                     int workers, cudaStream_t stream);
void LaunchSpmmResidual(int features, int cluster, const SpmmParams& params, int workers,
                        cudaStream_t stream);
void LaunchSpmmGelu(int features, int cluster, bool deep_ring, const SpmmParams& params,
                    int workers, cudaStream_t stream);
void LaunchSpmmSwiGlu(int features, int cluster, const SpmmParams& params, int workers,
                      cudaStream_t stream);
void LaunchSpmmTransposedStore(int features, int cluster, bool deep_ring, const SpmmParams& params,
                               int workers, cudaStream_t stream);
void LaunchSpmmTransposedGeluBackward(int features, int cluster, const SpmmParams& params,
                                      int workers, cudaStream_t stream);
void LaunchSpmmTransposedSwiGluBackward(int features, int cluster, const SpmmParams& params,
                                        int workers, cudaStream_t stream);
void LaunchSpmmGeluCode(int features, int cluster, const SpmmParams& params, int workers,
                        cudaStream_t stream);
void LaunchSpmmTransposedGeluCodeBackward(int features, int cluster, const SpmmParams& params,
                                          int workers, cudaStream_t stream);

}  // namespace filigree::sm90
