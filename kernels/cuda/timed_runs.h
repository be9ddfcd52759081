// How long something takes on the device: for choosing among algorithms at a shape's first use.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_check.h"

namespace filigree {

// Milliseconds of a call of `run`, which submits to `stream`: the mean of `runs`. Waits for them.
template <typename Fn>
float MeanMilliseconds(int runs, const Fn& run, cudaStream_t stream) {
  cudaEvent_t begin = nullptr, end = nullptr;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaEventRecord(begin, stream));
  for (int i = 0; i < runs; ++i) run();
  CUDA_CHECK(cudaEventRecord(end, stream));
  CUDA_CHECK(cudaEventSynchronize(end));
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  return milliseconds / static_cast<float>(runs);
}

}  // namespace filigree
