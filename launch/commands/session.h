// What every command that computes needs: the ranks, the CPU's threads, a backend.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"

namespace filigree {

// The peers, a device and its backend, alive together. Ranks other than 0 are silenced.
struct Session {
  std::unique_ptr<Communicator> communicator;
  std::unique_ptr<Device> device;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

// `cpu_threads` a rank; 0: OMP_NUM_THREADS, else the cores this process may use, shared with the
// ranks of this host.
StatusOr<Session> OpenSession(int cpu_threads);

// The status as this rank should report it: ranks other than 0 keep the code and drop the message.
Status ForThisRank(const Status& status, const Session& session);

}  // namespace filigree
