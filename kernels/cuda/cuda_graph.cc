#include "kernels/cuda/cuda_graph.h"

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"

namespace filigree {
namespace {

class CudaGraph final : public Recording {
 public:
  explicit CudaGraph(cudaGraph_t graph) {
    CUDA_CHECK(cudaGraphInstantiate(&executable_, graph, /*flags=*/0));
  }
  // A launch under way keeps what it needs.
  ~CudaGraph() override { CUDA_CHECK(cudaGraphExecDestroy(executable_)); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void Submit(Stream& stream) override {
    CUDA_CHECK(cudaGraphLaunch(executable_, NativeStream(stream)));
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

// Other threads (the watchdog's, a checkpoint's) go on with calls that cannot be captured: the mode
// is this thread's.
std::unique_ptr<Recording> RecordGraph(const std::function<void()>& submit, cudaStream_t stream) {
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  submit();
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  auto recording = std::make_unique<CudaGraph>(graph);
  CUDA_CHECK(cudaGraphDestroy(graph));
  return recording;
}

}  // namespace filigree
