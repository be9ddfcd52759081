// CUDA_CHECK, CUBLAS_CHECK, CUDNN_CHECK: a failed library call is fatal, with the library's own
// words. But for one case: in a recording that is lost already (cuda_graph.h) every call fails, and
// the pass is launched anew when its end is reached.
//
// The status types are named where a macro is used, so only users of a library include its header.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/base/check.h"

namespace filigree {

// True where a call of this thread failed because a call that cannot be captured has ended its
// recording (cuda_graph.h): until the capture is closed all that is submitted to its stream fails
// and does nothing. Takes the error; the first that comes is the reason that is logged.
bool RecordingIsLost(const char* call, const std::string& error);

}  // namespace filigree

#define FILIGREE_LIBRARY_CHECK(call, StatusType, success, text)                                    \
  do {                                                                                             \
    const StatusType library_status = (call);                                                      \
    CHECK(library_status == (success) || ::filigree::RecordingIsLost(#call, text(library_status))) \
        << #call << ": " << text(library_status);                                                  \
  } while (false)

#define CUDA_CHECK(call) FILIGREE_LIBRARY_CHECK(call, cudaError_t, cudaSuccess, cudaGetErrorString)
#define CUBLAS_CHECK(call) \
  FILIGREE_LIBRARY_CHECK(call, cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasLtGetStatusString)
#define CUDNN_CHECK(call) \
  FILIGREE_LIBRARY_CHECK(call, cudnnStatus_t, CUDNN_STATUS_SUCCESS, cudnnGetErrorString)
