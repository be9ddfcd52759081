// A rank whose layout has come to differ stops the run. Without MPI, since a death test forks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "trainer/topology_updater.h"

namespace filigree {
namespace {

// Says what a peer with another layout of parameter 1 would make of every reduction.
class PeerThatDiffers : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 2; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 2; }
  const std::string& host() const override { return host_; }
  std::unique_ptr<Work> AllReduce(TensorView, ReduceOp, const Event&) override { return nullptr; }
  std::unique_ptr<Work> ReduceScatter(TensorView, TensorView, ReduceOp, const Event&) override {
    return nullptr;
  }
  std::unique_ptr<Work> AllGather(ConstTensorView, TensorView, const Event&) override {
    return nullptr;
  }
  std::unique_ptr<Work> Broadcast(TensorView, int, const Event&) override { return nullptr; }
  void AllReduceHost(std::span<double>, ReduceOp) override {}
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override {
    const int64_t theirs = 12345;
    values[1] = op == ReduceOp::kMin ? std::min(values[1], theirs) : std::max(values[1], theirs);
  }
  void BroadcastHost(std::string*, int) override {}
  void Barrier() override {}
  [[noreturn]] void Abort(int code) override { std::exit(code); }

 private:
  std::string host_ = "here";
};

TEST(DivergenceTest, StopsTheRunAndNamesTheWeight) {
  std::vector<Parameter> parameters(3);
  for (size_t i = 0; i < 3; ++i) {
    parameters[i].name = "layers." + std::to_string(i) + ".mlp.up.weight";
    parameters[i].layout = SparseLayout::Dense(2, static_cast<int64_t>(i) + 1);
  }
  PeerThatDiffers peer;
  EXPECT_DEATH(CheckLayoutsAgree(parameters, peer), "layers.1.mlp.up.weight: its layout differs");
  CheckLayoutsAgree(parameters, *MakeSingleProcessCommunicator());
}

}  // namespace
}  // namespace filigree
