#include <cstdlib>
#include <string>

#include "comm/bootstrap.h"
#include "comm/done_work.h"
#include "comm/tcp_socket.h"

namespace filigree {
namespace {

class SingleProcess final : public Communicator {
 public:
  SingleProcess() : host_(HostName()) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  const std::string& host() const override { return host_; }

  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) override {
    return std::make_unique<DoneWork>();
  }
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    CheckSame(in, out);
    return std::make_unique<DoneWork>();
  }
  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    CheckSame(in, out);
    return std::make_unique<DoneWork>();
  }
  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    CHECK_EQ(root, 0);
    return std::make_unique<DoneWork>();
  }
  void AllReduceHost(std::span<double> values, ReduceOp op) override {}
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override {}
  void BroadcastHost(std::string* text, int root) override { CHECK_EQ(root, 0); }
  void Barrier() override {}
  [[noreturn]] void Abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  static void CheckSame(const ConstTensorView& in, const ConstTensorView& out) {
    CHECK_EQ(in.size(), out.size()) << "elements: the slice of a single rank is the whole";
    CHECK(in.data() == out.data()) << "the slice of a single rank is the whole: same memory";
    CHECK(in.dtype() == out.dtype()) << NameOf(in.dtype()) << " and " << NameOf(out.dtype());
  }

  const std::string host_;
};

}  // namespace

std::unique_ptr<Communicator> MakeSingleProcessCommunicator() {
  return std::make_unique<SingleProcess>();
}

}  // namespace filigree
