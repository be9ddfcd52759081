#include "launch/commands/plan_target.h"

#include <utility>

#include "kernels/planned/planned_gpu.h"
#ifdef FILIGREE_HAS_CUDA
#include "kernels/cuda/cuda_factory.h"
#endif

namespace filigree {
namespace {

bool GpuIsHere() {
#ifdef FILIGREE_HAS_CUDA
  return CudaDeviceCount() > 0;
#else
  return false;
#endif
}

GpuCard CardOf(const Device& device) {
#ifdef FILIGREE_HAS_CUDA
  return CudaCard(device);
#else
  return {};
#endif
}

bool NamesGpu(const PlanCommand& command) { return !command.card.empty() || command.memory_gb > 0; }

Status CheckOptions(const PlanCommand& command) {
  if (command.device != "cpu" || !NamesGpu(command)) return OkStatus();
  return InvalidInput(
      "--device cpu has no GPU whose --card or --memory-gb could be told; leave these out, or take "
      "--device cuda");
}

DeviceChoice ChoiceOf(const PlanCommand& command, const RunSpec& run) {
  if (command.device == "cuda") return DeviceChoice::kCuda;
  if (command.device == "cpu") return DeviceChoice::kCpu;
  return command.device == "auto" ? DeviceChoice::kAuto : run.device;
}

// The device of this machine that a run would take.
StatusOr<PlanTarget> OpenHere(const RunSpec& run, DeviceChoice device) {
  SessionOptions options = SessionOptionsOf(run);
  options.device = device;
  PlanTarget target;
  ASSIGN_OR_RETURN(target.session, OpenSession(options));
  // What an empty session holds beyond the account: on a GPU the context (and other programs'
  // memory, where it is shared).
  const MemoryUsage held = target.session.device->memory_usage();
  target.context_bytes = BytesInUse(target.session) - static_cast<int64_t>(held.total_bytes);
  if (target.session.device->name() == "cpu") {
    if (device == DeviceChoice::kAuto) {
      target.choice = "parallel.device is AUTO and no GPU is here; --device cuda plans for one";
    }
    return target;
  }
  const GpuCard card = CardOf(*target.session.device);
  target.card = card.name;
  target.memory_bytes = card.memory_bytes;
  target.choice = "the GPU that is here";
  target.estimates = {"scratch"};
  return target;
}

StatusOr<PlanTarget> OpenPlanned(const PlanCommand& command, const std::string& why) {
  PlanTarget target;
  ASSIGN_OR_RETURN(target.session, OpenSession(kNoCompute));
  GpuCard card = command.card.empty() ? GpuCards().front().card : *FindGpuCard(command.card);
  if (command.memory_gb > 0) card.memory_bytes = static_cast<int64_t>(command.memory_gb * 1e9);
  auto gpu = std::make_unique<PlannedGpu>(card);
  target.session.stream.reset();
  target.session.backend = std::make_unique<PlannedGpuBackend>(*gpu);
  target.session.device = std::move(gpu);
  target.card = card.name;
  target.memory_bytes = card.memory_bytes;
  target.present = false;
  target.choice = why;
  target.context_bytes = EstimateContext(command.ranks);
  target.estimates = {"context", "scratch"};
  return target;
}

}  // namespace

StatusOr<PlanTarget> OpenPlanTarget(const PlanCommand& command, const RunSpec& run) {
  if (const Status status = CheckOptions(command); !status.ok()) {
    ASSIGN_OR_RETURN(const Session session, OpenSession(kNoCompute));
    return ForThisRank(status, session);
  }
  if (NamesGpu(command)) return OpenPlanned(command, "as --card and --memory-gb say");
  const DeviceChoice choice = ChoiceOf(command, run);
  if (choice == DeviceChoice::kCuda && !GpuIsHere()) {
    return OpenPlanned(command, "no GPU is here: this kind is assumed; --card names another");
  }
  return OpenHere(run, choice);
}

}  // namespace filigree
