// What the tests of several GPUs share: the ranks of mpirun, a GPU each, over NCCL.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_factory.h"

namespace filigree {

class NcclTest : public ::testing::Test {
 protected:
  // Where fewer than two GPUs answer all ranks skip together.
  void SetUp() override {
    auto mpi = MakeMpiCommunicator();
    int64_t enough = CudaDeviceCount() >= std::max(2, mpi->local_size());
    mpi->AllReduceHost(std::span<int64_t>(&enough, 1), ReduceOp::kMin);
    if (!enough) GTEST_SKIP() << "fewer than 2 GPUs answer";
    ASSERT_GE(mpi->size(), 2) << "run under mpirun -np 2";
    device_ = MakeCudaDevice(mpi->local_rank());
    comm_ = std::move(mpi);
    const Status connected = ConnectOverNccl(&comm_, *device_, /*deadline_seconds=*/60);
    ASSERT_TRUE(connected.ok()) << connected.message();
    stream_ = device_->NewStream();
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace filigree
