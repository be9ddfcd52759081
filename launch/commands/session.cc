#include "launch/commands/session.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "comm/bootstrap.h"
#include "comm/watchdog.h"
#include "kernels/base/log.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/parallel.h"
#include "trainer/agree.h"
#ifdef FILIGREE_HAS_CUDA
#include "comm/nccl_communicator.h"
#include "kernels/cuda/cuda_factory.h"
#endif

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

void OpenCpu(Session* session) {
  session->device = std::make_unique<CpuDevice>();
  session->backend = std::make_unique<CpuBackend>(*session->device);
}

#ifdef FILIGREE_HAS_CUDA
Status OpenGpu(DeviceChoice choice, Session* session) {
  const Communicator& communicator = *session->communicator;
  const int count = CudaDeviceCount();
  if (count == 0 && choice == DeviceChoice::kAuto) return OpenCpu(session), OkStatus();
  // A rank that sees one GPU alone was given it by its launcher (Slurm's --gpus-per-task=1).
  const int ordinal = count == 1 ? 0 : communicator.local_rank();
  if (count <= ordinal) {
    return InvalidInput(communicator.host() + " has " + std::to_string(count) + " GPUs for " +
                        std::to_string(communicator.local_size()) +
                        (communicator.local_size() == 1 ? " rank" : " ranks") +
                        "; start at most one rank a GPU, or set parallel { device: CPU }");
  }
  session->device = MakeCudaDevice(ordinal);
  session->gpu = CudaDeviceIdentity(ordinal);
  session->backend = MakeCudaBackend(*session->device);
  return OkStatus();
}

// No two ranks on one GPU. Collective.
Status CheckGpusDiffer(uint64_t gpu, Communicator& communicator) {
  std::vector<int64_t> gpus(communicator.size(), 0);
  gpus[communicator.rank()] = static_cast<int64_t>(gpu);
  communicator.AllReduceHost(gpus, ReduceOp::kSum);
  for (size_t rank = 1; rank < gpus.size(); ++rank) {
    const auto first = std::find(gpus.begin(), gpus.begin() + rank, gpus[rank]);
    if (first == gpus.begin() + rank) continue;
    return InvalidInput("ranks " + std::to_string(first - gpus.begin()) + " and " +
                        std::to_string(rank) +
                        " see the same GPU and no other; start at most one rank a GPU (nvidia-smi "
                        "-L, CUDA_VISIBLE_DEVICES), or set parallel { device: CPU }");
  }
  return OkStatus();
}

// All ranks on GPUs, or all on CPUs. Collective.
Status ConnectGpus(Session* session) {
  int64_t gpus = session->device->name() == "cuda";
  session->communicator->AllReduceHost(std::span<int64_t>(&gpus, 1), ReduceOp::kSum);
  const int ranks = session->communicator->size();
  if (gpus == 0) return OkStatus();
  if (gpus < ranks) {
    return InvalidInput("a GPU answers on " + std::to_string(gpus) + " of " +
                        std::to_string(ranks) +
                        " ranks; mend the others, or set parallel { device: CPU }");
  }
  RETURN_IF_ERROR(CheckGpusDiffer(session->gpu, *session->communicator));
  return ConnectOverNccl(&session->communicator, *session->device);
}
#else
Status ConnectGpus(Session*) { return OkStatus(); }

Status OpenGpu(DeviceChoice choice, Session* session) {
  if (choice == DeviceChoice::kAuto) return OpenCpu(session), OkStatus();
  return InvalidInput(
      "parallel.device is CUDA, but this build has no CUDA backend; build where nvcc is found, or "
      "set "
      "parallel { device: CPU }");
}
#endif

}  // namespace

SessionOptions SessionOptionsOf(const RunSpec& run) {
  return {.cpu_threads = run.cpu_threads,
          .device = run.device,
          .deterministic = run.deterministic,
          .timeout_seconds = run.timeout_seconds};
}

StatusOr<Session> OpenSession(const SessionOptions& options) {
  Session session;
  ASSIGN_OR_RETURN(session.communicator, Bootstrap());
  SetLogQuiet(session.communicator->rank() != 0);
  int cpu_threads = options.cpu_threads;
  if (cpu_threads == 0 && !std::getenv("OMP_NUM_THREADS")) {
    cpu_threads = ThreadsOfRank(*session.communicator);
  }
  if (cpu_threads > 0) SetCpuThreads(cpu_threads);
  Status opened;
  if (options.device == DeviceChoice::kCpu) {
    OpenCpu(&session);
  } else {
    opened = OpenGpu(options.device, &session);
  }
  const bool chosen = options.cpu_threads > 0 || std::getenv("OMP_NUM_THREADS");
  if (options.deterministic && !chosen && session.device && session.device->name() == "cpu") {
    SetCpuThreads(1);
  }
  // One rank without a GPU ends all of them.
  opened = AgreeOnStatus(opened, *session.communicator);
  if (!opened.ok()) return ForThisRank(opened, session);
  opened = ConnectGpus(&session);
  if (opened.ok()) opened = Watch(&session.communicator, options.timeout_seconds);
  if (!opened.ok()) return ForThisRank(opened, session);
  session.stream = session.device->NewStream();
  return session;
}

int64_t BytesInUse(const Session& session) {
#ifdef FILIGREE_HAS_CUDA
  if (session.device->name() == "cuda") return CudaBytesInUse();
#endif
  return static_cast<int64_t>(session.device->memory_usage().total_bytes);
}

Status OnRankZero(const std::function<Status()>& work) {
  ASSIGN_OR_RETURN(const auto communicator, Bootstrap());
  const bool mine = communicator->rank() == 0;
  return AgreeOnStatus(mine ? Tell(work()) : OkStatus(), *communicator);
}

Status Tell(const Status& status) {
  if (status.ok() || status.message().empty()) return status;
  std::fprintf(stderr, "filigree: %s\n", status.message().c_str());
  return Status(status.code(), "");
}

Status ForThisRank(const Status& status, const Session& session) {
  if (status.ok()) return status;
  if (session.communicator->rank() == 0) return Tell(status);
  return Status(status.code(), "");
}

}  // namespace filigree
