#include "kernels/cuda/cuda_graph.h"

#include <algorithm>
#include <string>

#include "kernels/base/log.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_factory.h"

namespace filigree {
namespace {

// Memory of the driver's for it, which no call of ours allocates, is what was free before and no
// longer is, in the driver's steps of 2 MB; another program that allocates meanwhile is counted
// too.
class CudaGraph final : public Recording {
 public:
  CudaGraph(cudaGraphExec_t executable, CudaDevice& device, int64_t bytes)
      : executable_(executable), device_(device), bytes_(bytes) {
    device_.AccountRecording(bytes_);
  }
  // A launch under way keeps what it needs.
  ~CudaGraph() override {
    CUDA_CHECK(cudaGraphExecDestroy(executable_));
    device_.AccountRecording(-bytes_);
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void Submit(Stream& stream) override {
    CUDA_CHECK(cudaGraphLaunch(executable_, NativeStream(stream)));
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
  CudaDevice& device_;
  const int64_t bytes_;
};

// Takes the error, so that no later call reports it.
std::unique_ptr<Recording> Failed(const char* what, const std::string& error) {
  cudaGetLastError();
  LogWarning(std::string("passes are launched kernel by kernel, since ") + what +
             " a CUDA graph of one failed (" + error +
             "); parallel { graphs: OFF } does without trying");
  return nullptr;
}

// A capture between its begin and its end.
struct Capture {
  cudaStream_t stream = nullptr;
  std::string lost;  // why, once a check has met it
};
thread_local Capture* thread_capture = nullptr;

}  // namespace

// Whatever else fails during a capture, bad arguments say, leaves it intact, and is fatal.
bool RecordingIsLost(const char* call, const std::string& error) {
  if (thread_capture == nullptr) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(thread_capture->stream, &status) != cudaSuccess) return false;
  if (status != cudaStreamCaptureStatusInvalidated) return false;
  cudaGetLastError();
  if (thread_capture->lost.empty()) thread_capture->lost = std::string(call) + ": " + error;
  return true;
}

// Other threads (the watchdog's, a checkpoint's) go on with calls that cannot be captured: the mode
// is this thread's.
std::unique_ptr<Recording> RecordGraph(const std::function<void()>& submit, CudaDevice& device,
                                       cudaStream_t stream) {
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  Capture capture = {.stream = stream, .lost = ""};
  thread_capture = &capture;
  submit();
  thread_capture = nullptr;
  cudaGraph_t graph = nullptr;
  if (const cudaError_t error = cudaStreamEndCapture(stream, &graph); error != cudaSuccess) {
    return Failed("recording", capture.lost.empty() ? cudaGetErrorString(error) : capture.lost);
  }
  const int64_t before = CudaBytesInUse();
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, /*flags=*/0);
  CUDA_CHECK(cudaGraphDestroy(graph));
  if (error != cudaSuccess) return Failed("making", cudaGetErrorString(error));
  // What the device keeps of it arrives now and not with the first launch, and is counted.
  if (const cudaError_t moved = cudaGraphUpload(executable, stream); moved != cudaSuccess) {
    CUDA_CHECK(cudaGraphExecDestroy(executable));
    return Failed("keeping", cudaGetErrorString(moved));
  }
  const int64_t bytes = std::max<int64_t>(CudaBytesInUse() - before, 0);
  return std::make_unique<CudaGraph>(executable, device, bytes);
}

}  // namespace filigree
