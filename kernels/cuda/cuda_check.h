// CUDA_CHECK, CUBLAS_CHECK, CUDNN_CHECK: a failed library call is fatal, with the library's own
// words.
//
// The status types are named where a macro is used, so only users of a library include its header.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/check.h"

#define FILIGREE_LIBRARY_CHECK(call, StatusType, success, text)                  \
  do {                                                                           \
    const StatusType library_status = (call);                                    \
    CHECK(library_status == (success)) << #call << ": " << text(library_status); \
  } while (false)

#define CUDA_CHECK(call) FILIGREE_LIBRARY_CHECK(call, cudaError_t, cudaSuccess, cudaGetErrorString)
#define CUBLAS_CHECK(call) \
  FILIGREE_LIBRARY_CHECK(call, cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasLtGetStatusString)
#define CUDNN_CHECK(call) \
  FILIGREE_LIBRARY_CHECK(call, cudnnStatus_t, CUDNN_STATUS_SUCCESS, cudnnGetErrorString)
