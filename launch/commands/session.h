// What every command that computes needs: the ranks, the CPU's threads, a device and its backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

// The peers, a device and its backend, alive together. Ranks other than 0 are silenced.
struct Session {
  std::unique_ptr<Device> device;
  std::unique_ptr<Communicator> communicator;  // on GPUs it has streams of the device
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

struct SessionOptions {
  // A rank's; 0: OMP_NUM_THREADS, else the cores this process may use, shared with the ranks of
  // this host.
  int cpu_threads = 0;
  DeviceChoice device = DeviceChoice::kAuto;
  // A rank on a CPU takes one thread, unless cpu_threads or OMP_NUM_THREADS says otherwise: its
  // share of the cores would change with the number of ranks, and the bits of products with it.
  bool deterministic = false;
  // Without progress, until all ranks are ended (comm/watchdog.h); 0: no watchdog.
  double timeout_seconds = 0;
};
// Enough to tell rank 0 from the others, for commands that end before they compute.
inline constexpr SessionOptions kNoCompute = {.cpu_threads = 1, .device = DeviceChoice::kCpu};
// Starts the communicator and takes this rank's device; several ranks on GPUs meet over NCCL.
// Invalid input: a GPU is asked for and there is none for this rank, or some ranks have one and
// some have not.
StatusOr<Session> OpenSession(const SessionOptions& options);
// What a run's configuration asks for.
SessionOptions SessionOptionsOf(const RunSpec& run);

// Memory in use on the session's device: on a GPU by whomever, contexts and libraries included; on
// a CPU what the session allocated.
int64_t BytesInUse(const Session& session);

// Runs on rank 0 what computes nothing in parallel, while the other ranks wait for its status.
// `work` does not open a session.
Status OnRankZero(const std::function<Status()>& work);

// Prints an error's message to stderr; what remains is its code.
Status Tell(const Status& status);

// The status of a command that all ranks ran, told by rank 0. That happens before the session ends,
// since a launcher kills all ranks as soon as one leaves with an error.
Status ForThisRank(const Status& status, const Session& session);

}  // namespace filigree
