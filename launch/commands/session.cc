#include "launch/commands/session.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "comm/bootstrap.h"
#include "kernels/base/log.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/parallel.h"

namespace filigree {
namespace {

// A rank that the launcher bound to some cores takes those; ranks that share the whole machine take
// their part of it.
int ThreadsOfRank(const Communicator& communicator) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CHECK_EQ(sched_getaffinity(0, sizeof(mask), &mask), 0);
  const int usable = CPU_COUNT(&mask);
  const auto machine = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return std::max(1, usable < machine ? usable : machine / communicator.local_size());
}

}  // namespace

StatusOr<Session> OpenSession(int cpu_threads) {
  Session session;
  ASSIGN_OR_RETURN(session.communicator, Bootstrap());
  SetLogQuiet(session.communicator->rank() != 0);
  if (cpu_threads == 0 && !std::getenv("OMP_NUM_THREADS")) {
    cpu_threads = ThreadsOfRank(*session.communicator);
  }
  if (cpu_threads > 0) SetCpuThreads(cpu_threads);
  session.device = std::make_unique<CpuDevice>();
  session.backend = std::make_unique<CpuBackend>(*session.device);
  session.stream = session.device->NewStream();
  return session;
}

Status ForThisRank(const Status& status, const Session& session) {
  if (status.ok() || session.communicator->rank() == 0) return status;
  return Status(status.code(), "");
}

}  // namespace filigree
