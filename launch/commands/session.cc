#include "launch/commands/session.h"

#include <algorithm>
#include <utility>

#include "comm/bootstrap.h"
#include "kernels/base/log.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

// mpirun may bind each rank to its own core, or leave all ranks the whole machine.
int ThreadsOfRank(const Communicator& communicator) {
  const int usable = UsableCores();
  const int machine = MachineCores();
  const bool bound = usable < machine;
  return std::max(1, bound ? usable : machine / communicator.local_size());
}

}  // namespace

StatusOr<Session> OpenSession(int cpu_threads) {
  Session session;
  ASSIGN_OR_RETURN(session.communicator, Bootstrap());
  SetLogQuiet(session.communicator->rank() != 0);
  SetCpuThreads(cpu_threads > 0 ? cpu_threads : ThreadsOfRank(*session.communicator));
  session.device = std::make_unique<CpuDevice>();
  session.backend = MakeCpuBackend(*session.device);
  session.stream = session.device->NewStream();
  return session;
}

Status ForThisRank(const Status& status, const Session& session) {
  if (status.ok() || session.communicator->rank() == 0) return status;
  return Status(status.code(), "");
}

}  // namespace filigree
