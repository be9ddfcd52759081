// A communicator that reports each collective to kernels/base/progress.h.
#include <cstdlib>
#include <utility>

#include "comm/watchdog.h"
#include "comm/watchdog_thread.h"
#include "kernels/base/progress.h"

namespace filigree {
namespace {

// The call or the wait of a collective, which may block.
class InCollective {
 public:
  explicit InCollective(const char* name) { ReportCollective(name); }
  ~InCollective() { ReportCollective(nullptr); }
};

class WatchedWork final : public Work {
 public:
  WatchedWork(std::unique_ptr<Work> inner, const char* name)
      : inner_(std::move(inner)), name_(name) {}
  ~WatchedWork() override {
    const InCollective inside(name_);
    inner_.reset();
  }
  void Wait(Stream& stream) override {
    const InCollective inside(name_);
    inner_->Wait(stream);
  }

 private:
  std::unique_ptr<Work> inner_;
  const char* const name_;
};

// Counts the collective, and runs its call as a place where the process may be found.
template <typename Run>
auto Call(const char* name, const Run& run) {
  CountCollective();
  const InCollective inside(name);
  return run();
}

template <typename Run>
std::unique_ptr<Work> Start(const char* name, const Run& run) {
  return std::make_unique<WatchedWork>(Call(name, run), name);
}

class WatchedCommunicator final : public Communicator {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> inner, double timeout_seconds)
      : inner_(std::move(inner)), watchdog_(*inner_, timeout_seconds) {}

  Status Connect() { return watchdog_.Start(); }
  // Of one that did not connect.
  std::unique_ptr<Communicator> TakeInner() { return std::move(inner_); }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  int local_rank() const override { return inner_->local_rank(); }
  int local_size() const override { return inner_->local_size(); }
  const std::string& host() const override { return inner_->host(); }

  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) override {
    return Start("all-reduce", [&] { return inner_->AllReduce(data, op, ready); });
  }
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    return Start("reduce-scatter", [&] { return inner_->ReduceScatter(in, out, op, ready); });
  }
  std::unique_ptr<Work> ReduceScatterThrough(TensorView landing, TensorView in, TensorView out,
                                             const Event& ready) override {
    return Start("reduce-scatter",
                 [&] { return inner_->ReduceScatterThrough(landing, in, out, ready); });
  }
  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    return Start("all-gather", [&] { return inner_->AllGather(in, out, ready); });
  }
  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    return Start("broadcast", [&] { return inner_->Broadcast(data, root, ready); });
  }

  DeviceBuffer Allocate(Device& device, size_t bytes, std::string_view kind) override {
    return Call("allocation of exchanged memory",
                [&] { return inner_->Allocate(device, bytes, kind); });
  }
  bool copies_peer_memory() const override { return inner_->copies_peer_memory(); }

  void AllReduceHost(std::span<double> values, ReduceOp op) override {
    Call("all-reduce of host values", [&] { inner_->AllReduceHost(values, op); });
  }
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override {
    Call("all-reduce of host values", [&] { inner_->AllReduceHost(values, op); });
  }
  void BroadcastHost(std::string* text, int root) override {
    Call("broadcast of text", [&] { inner_->BroadcastHost(text, root); });
  }
  void Barrier() override {
    Call("barrier", [&] { inner_->Barrier(); });
  }
  std::string AsyncError() override { return inner_->AsyncError(); }
  [[noreturn]] void Abort(int exit_code) override {
    inner_->Abort(exit_code);
    std::_Exit(exit_code);  // no compiler knows that a virtual function does not return
  }

 private:
  std::unique_ptr<Communicator> inner_;
  WatchdogThread watchdog_;  // ends before the communicator that it watches
};

}  // namespace

Status Watch(std::unique_ptr<Communicator>* communicator, double timeout_seconds) {
  if (timeout_seconds == 0) return OkStatus();
  auto watched = std::make_unique<WatchedCommunicator>(std::move(*communicator), timeout_seconds);
  const Status connected = watched->Connect();
  if (connected.ok()) {
    *communicator = std::move(watched);
  } else {
    *communicator = watched->TakeInner();
  }
  return connected;
}

}  // namespace filigree
