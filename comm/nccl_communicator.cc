#include "comm/nccl_communicator.h"

#include <nccl.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "comm/collective_checks.h"
#include "comm/nccl_calls.h"
#include "comm/nccl_windows.h"
#include "comm/nccl_work.h"
#include "kernels/base/log.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/slice_sum.h"

namespace filigree {
namespace {

using std::chrono::steady_clock;

constexpr auto kAbortSeconds = std::chrono::seconds(2);  // NCCL may wait for peers that are gone

bool OnDevice(const ConstTensorView& view) {
  cudaPointerAttributes attributes;
  CUDA_CHECK(cudaPointerGetAttributes(&attributes, view.data()));
  return attributes.type == cudaMemoryTypeDevice;
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> inner, Device& device, double deadline_seconds)
      : inner_(std::move(inner)),
        device_(device),
        deadline_(std::chrono::duration_cast<steady_clock::duration>(
            std::chrono::duration<double>(deadline_seconds))),
        // A collective that waits for multiprocessors holds up its peers, which hold theirs
        // meanwhile; it takes few, and briefly.
        stream_(device.NewStream(StreamPriority::kUrgent)),
        events_(device),
        windows_(device) {}

  ~NcclCommunicator() override {
    if (!comm_) return;
    SetFatalHook([inner = inner_.get()] { inner->Abort(1); });
    Disconnect();
    SetFatalHook(nullptr);  // it must not outlive the communicator it calls
  }

  Status Connect();
  // Of one that did not connect.
  std::unique_ptr<Communicator> TakeInner() { return std::move(inner_); }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  int local_rank() const override { return inner_->local_rank(); }
  int local_size() const override { return inner_->local_size(); }
  const std::string& host() const override { return inner_->host(); }

  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) override {
    CHECK(data.contiguous());
    if (!OnDevice(data)) return inner_->AllReduce(data, op, Completed(ready));
    return Run(ready, "ncclAllReduce", [&](cudaStream_t stream) {
      return ncclAllReduce(data.data(), data.data(), data.size(), NcclTypeOf(data.dtype()),
                           NcclOpOf(op, data.dtype()), comm_, stream);
    });
  }

  // In place where `out` is this rank's slice of `in`: NCCL knows that case.
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    CheckSlices(/*whole=*/in, /*slice=*/out, size());
    if (!OnDevice(in)) return inner_->ReduceScatter(in, out, op, Completed(ready));
    return Run(ready, "ncclReduceScatter", [&](cudaStream_t stream) {
      return ncclReduceScatter(in.data(), out.data(), out.size(), NcclTypeOf(in.dtype()),
                               NcclOpOf(op, in.dtype()), comm_, stream);
    });
  }

  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    CheckSlices(/*whole=*/out, /*slice=*/in, size());
    if (!OnDevice(out)) return inner_->AllGather(in, out, Completed(ready));
    return Run(ready, "ncclAllGather", [&](cudaStream_t stream) {
      return ncclAllGather(in.data(), out.data(), in.bytes(), ncclUint8, comm_, stream);
    });
  }

  DeviceBuffer Allocate(Device& device, size_t bytes, std::string_view kind) override {
    if (!copies_ || &device != &device_) return device.Allocate(bytes, kind);
    return windows_.Allocate(comm_, bytes, kind);
  }
  bool copies_peer_memory() const override { return copies_; }

  // The sum is submitted behind the copies, so that one landing serves all buckets: no rank's next
  // slice leaves before every rank's stream is past its sum.
  std::unique_ptr<Work> ReduceScatterThrough(TensorView landing, TensorView in, TensorView out,
                                             const Event& ready) override {
    if (!copies_) return ReduceScatter(in, out, ReduceOp::kSum, ready);
    CheckSlices(/*whole=*/in, /*slice=*/out, size());
    CheckSlices(/*whole=*/landing, /*slice=*/out, size());
    return Run(ready, "ncclAlltoAll", [&](cudaStream_t stream) {
      const ncclResult_t result = CopySlices(in.data(), landing.data(), out, stream);
      if (result == ncclSuccess) SumSlices(landing, out, *stream_);
      return result;
    });
  }

  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    CHECK(data.contiguous());
    if (!OnDevice(data)) return inner_->Broadcast(data, root, Completed(ready));
    return Run(ready, "ncclBroadcast", [&](cudaStream_t stream) {
      return ncclBroadcast(data.data(), data.data(), data.bytes(), ncclUint8, root, comm_, stream);
    });
  }

  void AllReduceHost(std::span<double> values, ReduceOp op) override {
    inner_->AllReduceHost(values, op);
  }
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override {
    inner_->AllReduceHost(values, op);
  }
  void BroadcastHost(std::string* text, int root) override { inner_->BroadcastHost(text, root); }
  void Barrier() override { inner_->Barrier(); }

  std::string AsyncError() override {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    const ncclResult_t result = asked == ncclSuccess ? state : asked;
    if (result == ncclSuccess || result == ncclInProgress) return inner_->AsyncError();
    return "NCCL failed: " + NcclErrorText(result, comm_);
  }

  [[noreturn]] void Abort(int exit_code) override {
    AbortNccl();
    inner_->Abort(exit_code);
    std::_Exit(exit_code);
  }

 private:
  // Ends NCCL in order, or by force once the deadline has passed.
  void Disconnect() {
    stream_->Synchronize();
    ncclComm_t child = std::exchange(comm_, nullptr);  // gone, or in a thread's hands
    const bool ended = EndsWithin(deadline_, [child] { ncclCommDestroy(child); });
    const auto deadline = steady_clock::now() + deadline_;
    if (ended && Settle(parent_, ncclCommFinalize(parent_), deadline) == ncclSuccess) {
      ncclCommDestroy(parent_);
    } else {
      AbortNccl();
    }
  }

  // What `inner` is told, which reads host memory at once.
  static const Event& Completed(const Event& ready) {
    CUDA_CHECK(cudaEventSynchronize(NativeEvent(ready)));
    return ready;
  }

  // Submits a collective after `ready`.
  template <typename Call>
  std::unique_ptr<Work> Run(const Event& ready, const char* name, const Call& call) {
    stream_->Wait(ready);
    const ncclResult_t result = call(NativeStream(*stream_));
    CHECK(result == ncclSuccess) << name << ": " << NcclErrorText(result, comm_);
    return std::make_unique<NcclWork>(events_, *stream_);
  }

  // Slice r of `in` to rank r, whose `landing` has it as slice of this rank.
  ncclResult_t CopySlices(const void* in, void* landing, const TensorView& slice,
                          cudaStream_t stream) {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
    return ncclAlltoAll(in, landing, slice.size(), NcclTypeOf(slice.dtype()), comm_, stream);
#else
    return ncclInvalidUsage;  // copies_ is false
#endif
  }

  // Collective steps of Connect. Agree ends NCCL where a rank failed, and says of the first why.
  ncclResult_t Split(bool copies);  // makes comm_
  Status Agree(ncclResult_t result);
  bool ReachesPeerMemory();
  bool All(bool mine);

  void AbortNccl() {
    EndsWithin(kAbortSeconds, [comm = comm_, parent = parent_] {
      if (comm) ncclCommAbort(comm);
      if (parent) ncclCommAbort(parent);
    });
  }

  std::unique_ptr<Communicator> inner_;
  Device& device_;
  const steady_clock::duration deadline_;  // for meeting and parting
  std::unique_ptr<Stream> stream_;
  EventPool events_;
  // Ranks meet in `parent_`, which does not block, so that a peer that is missing ends in a
  // message. Its collectives would be started by a thread each, 0.1 ms of the host a piece: they go
  // through `comm_`, which shares all that the parent has connected and submits them in place.
  ncclComm_t parent_ = nullptr;
  ncclComm_t comm_ = nullptr;
  NcclWindows windows_;
  bool copies_ = false;
};

bool NcclCommunicator::All(bool mine) {
  int64_t ours = mine;
  inner_->AllReduceHost(std::span<int64_t>(&ours, 1), ReduceOp::kMin);
  return ours != 0;
}

bool NcclCommunicator::ReachesPeerMemory() {
  auto found = std::make_shared<bool>(false);
  const int ordinal = static_cast<CudaDevice&>(device_).ordinal();
  const bool answered = EndsWithin(
      deadline_, [comm = comm_, ordinal, found] { *found = HasSymmetricMemory(comm, ordinal); });
  // The thread that still asks has the communicator: nothing else may use it.
  CHECK(answered) << "rank " << rank() << " on " << host()
                  << ": NCCL did not register memory in time; NCCL_CTA_POLICY=0 goes without";
  return All(*found);
}

Status NcclCommunicator::Agree(ncclResult_t result) {
  const bool failed = result != ncclSuccess;
  int64_t failing = failed ? rank() : size();
  inner_->AllReduceHost(std::span<int64_t>(&failing, 1), ReduceOp::kMin);
  if (failing == size()) return OkStatus();
  std::string message;
  if (failed) {
    message = "rank " + std::to_string(rank()) + " on " + host() + ": NCCL did not connect " +
              std::to_string(size()) + " ranks: " +
              (result == ncclInProgress ? "peers did not answer in time"
                                        : NcclErrorText(result, parent_)) +
              "; NCCL_DEBUG=INFO tells more, NCCL_SOCKET_IFNAME names the network";
  }
  AbortNccl();
  parent_ = comm_ = nullptr;
  inner_->BroadcastHost(&message, static_cast<int>(failing));
  return MachineError(message);
}

ncclResult_t NcclCommunicator::Split(bool copies) {
  ncclConfig_t config = MemberConfig();
  config.blocking = 1;
  if (copies) PreferCopyEngines(&config);
  // Returns success while NCCL is still at it: only the parent's state tells.
  const ncclResult_t result = ncclCommSplit(parent_, /*color=*/0, rank(), &comm_, &config);
  if (result != ncclSuccess) return result;
  return Settle(parent_, ncclInProgress, steady_clock::now() + deadline_);
}

Status NcclCommunicator::Connect() {
  const bool may_copy = All(local_size() == size() && CopyEnginesMayServe());
  ncclResult_t result = MeetOverNccl(*inner_, deadline_, &parent_);
  if (result == ncclSuccess) result = Split(may_copy);
  if (const Status met = Agree(result); !met.ok()) return met;
  SetFatalHook([this] { Abort(1); });
  copies_ = may_copy && ReachesPeerMemory();
  if (may_copy && !copies_) {
    ncclCommDestroy(std::exchange(comm_, nullptr));
    if (const Status split = Agree(Split(/*copies=*/false)); !split.ok()) {
      SetFatalHook(nullptr);
      return split;
    }
  }
  LogInfo(DescribeNccl() + (copies_ ? "; copy engines carry gradients and values under ZeRO-1"
                                    : "; kernels carry gradients and values"));
  return OkStatus();
}

}  // namespace

Status ConnectOverNccl(std::unique_ptr<Communicator>* communicator, Device& device,
                       double deadline_seconds) {
  if ((*communicator)->size() == 1) return OkStatus();
  auto nccl =
      std::make_unique<NcclCommunicator>(std::move(*communicator), device, deadline_seconds);
  const Status connected = nccl->Connect();
  if (connected.ok()) {
    *communicator = std::move(nccl);
  } else {
    *communicator = nccl->TakeInner();
  }
  return connected;
}

}  // namespace filigree
