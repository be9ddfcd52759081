// CUDA_CHECK: a failed CUDA runtime call is fatal, with the library's own words.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/check.h"

#define CUDA_CHECK(call)                                                                     \
  do {                                                                                       \
    const cudaError_t cuda_check_error = (call);                                             \
    CHECK(cuda_check_error == cudaSuccess) << #call << ": " << cudaGetErrorString(cuda_check_error); \
  } while (false)
