// Communication between ranks. Implementations: one process (bootstrap.h), MPI and TCP on the host,
// NCCL on GPUs (nccl_communicator.h).
//
// Bulk collectives take contiguous views (counts are elements, never bytes), start when `ready` is
// complete and return Work; the buffers must stay alive and untouched until Work::Wait. All ranks
// call the same collectives with the same sizes in the same order. Every rank receives the same
// bits. Sizes or dtypes that do not fit each other, and a failed call of the library underneath,
// are fatal and take the peers down.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/device.h"
#include "kernels/base/tensor_view.h"

namespace filigree {

enum class ReduceOp { kSum, kMin, kMax };

// A collective under way.
class Work {
 public:
  // Waits where nobody has: no collective is left half done.
  virtual ~Work() = default;
  // Work submitted to `stream` from now on sees the result. On the host this blocks.
  virtual void Wait(Stream& stream) = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Rank and number of ranks on this host.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  virtual const std::string& host() const = 0;

  // In place, element-wise over all ranks. F64, F32, I64, and BF16 (only summed, in F32).
  virtual std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) = 0;
  // out [n] = this rank's slice of the element-wise result over `in` [size() * n]. `out` may be
  // exactly that slice of `in`; the other slices of `in` are undefined afterwards.
  virtual std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                              const Event& ready) = 0;
  // out [size() * n] = the ranks' `in` [n] in order of rank. `in` may be exactly this rank's slice.
  virtual std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out,
                                          const Event& ready) = 0;
  virtual std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) = 0;

  // Memory of `device` for arrays that collectives read and write; gone before the communicator and
  // the device. Collective: all ranks ask for as many bytes, in the same order.
  virtual DeviceBuffer Allocate(Device& device, size_t bytes, std::string_view kind) {
    return device.Allocate(bytes, kind);
  }
  // Whether copy engines carry what lies in memory of Allocate, and leave the multiprocessors to
  // compute: AllGather and ReduceScatterThrough.
  virtual bool copies_peer_memory() const { return false; }
  // ReduceScatter of sums, for which the ranks' slices may come to rest in `landing` [size() * n]
  // first. `in` and `landing` are of Allocate. Each sum is taken in order of rank, in F32.
  virtual std::unique_ptr<Work> ReduceScatterThrough(TensorView /*landing*/, TensorView in,
                                                     TensorView out, const Event& ready) {
    return ReduceScatter(in, out, ReduceOp::kSum, ready);
  }

  // Small values in host memory; blocking.
  virtual void AllReduceHost(std::span<double> values, ReduceOp op) = 0;
  virtual void AllReduceHost(std::span<int64_t> values, ReduceOp op) = 0;
  // Every rank's copy of `text` becomes root's.
  virtual void BroadcastHost(std::string* text, int root) = 0;
  virtual void Barrier() = 0;

  // What failed in the background (a link, a peer), for a watchdog's thread; empty: nothing did.
  virtual std::string AsyncError() { return ""; }
  // Ends all ranks with this exit code, without waiting for anything. Safe in any thread.
  [[noreturn]] virtual void Abort(int exit_code) = 0;
};

}  // namespace filigree
