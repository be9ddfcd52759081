#include "comm/bootstrap.h"

#include <charconv>
#include <cstdlib>
#include <string>
#include <string_view>

#include "comm/mpi_communicator.h"
#include "comm/tcp_communicator.h"

namespace filigree {
namespace {

// What a launcher leaves in the environment of its processes.
struct Launcher {
  const char* name;
  const char* rank_variable;  // always there
  const char* size_variable;  // the number of processes, where it says so
};
// Open MPI's mpirun speaks PMIx too, so it comes first.
constexpr Launcher kLaunchers[] = {
    {"Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"a PMI launcher (MPICH's mpiexec, Slurm's srun)", "PMI_RANK", "PMI_SIZE"},
    {"a PMIx launcher (Slurm's srun)", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"},
};

const Launcher* FindLauncher() {
  for (const Launcher& launcher : kLaunchers) {
    if (std::getenv(launcher.rank_variable)) return &launcher;
  }
  return nullptr;
}

int IntFromEnvironment(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

// An integer that the environment must have, in [low, high]; `otherwise` where it may be absent.
StatusOr<int> VariableInRange(const char* variable, int low, int high, const int* otherwise) {
  const char* text = std::getenv(variable);
  if (!text && otherwise) return *otherwise;
  const std::string_view view = text ? text : "";
  int value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (view.empty() || error != std::errc() || end != view.data() + view.size() || value < low ||
      value > high) {
    return InvalidInput(
        std::string(variable) + (text ? "=" + std::string(text) : " is not set") +
        ": RANK and WORLD_SIZE, as torchrun sets them, need it to be a number from " +
        std::to_string(low) + " to " + std::to_string(high) +
        "; unset RANK to run one process alone");
  }
  return value;
}

// The processes that torchrun, or somebody who sets what it sets, started without MPI.
StatusOr<std::unique_ptr<Communicator>> JoinOverTcp() {
  constexpr int kMostRanks = 1 << 16, kHighestPort = 65535, kUnknown = -1;
  TcpRendezvous rendezvous;
  ASSIGN_OR_RETURN(rendezvous.size, VariableInRange("WORLD_SIZE", 1, kMostRanks, nullptr));
  ASSIGN_OR_RETURN(rendezvous.rank, VariableInRange("RANK", 0, rendezvous.size - 1, nullptr));
  ASSIGN_OR_RETURN(rendezvous.local_rank,
                   VariableInRange("LOCAL_RANK", 0, rendezvous.size - 1, &kUnknown));
  ASSIGN_OR_RETURN(rendezvous.local_size,
                   VariableInRange("LOCAL_WORLD_SIZE", 1, rendezvous.size, &kUnknown));
  if (rendezvous.size == 1) return MakeSingleProcessCommunicator();
  ASSIGN_OR_RETURN(rendezvous.port, VariableInRange("MASTER_PORT", 1, kHighestPort - 1, nullptr));
  // torchrun's agent listens on MASTER_PORT itself.
  if (std::getenv("TORCHELASTIC_RUN_ID")) ++rendezvous.port;
  const char* address = std::getenv("MASTER_ADDR");
  if (!address) {
    return InvalidInput(
        "MASTER_ADDR is not set: RANK and WORLD_SIZE, as torchrun sets them, need the name or "
        "address of rank 0's host there");
  }
  rendezvous.address = address;
  return MakeTcpCommunicator(rendezvous);
}

// MPI where there is a launcher, else TCP where the environment names a rank, else alone.
StatusOr<std::unique_ptr<Communicator>> Join() {
  const Launcher* launcher = FindLauncher();
  if (!launcher && !MpiIsInitialized()) {
    if (std::getenv("RANK") && std::getenv("WORLD_SIZE")) return JoinOverTcp();
    // Set by srun alone: a batch script or allocation in which no srun runs does not have it.
    const int tasks = IntFromEnvironment("SLURM_STEP_NUM_TASKS", 1);
    if (tasks == 1) return MakeSingleProcessCommunicator();
    return InvalidInput("srun started " + std::to_string(tasks) +
                        " processes without a way to find each other; use srun --mpi=pmix (srun "
                        "--mpi=list shows what this Slurm has), or mpirun, or set RANK, "
                        "WORLD_SIZE, MASTER_ADDR and MASTER_PORT");
  }
  std::unique_ptr<Communicator> communicator = MakeMpiCommunicator();
  const int launched = launcher ? IntFromEnvironment(launcher->size_variable, 1) : 1;
  if (launched > 1 && communicator->size() == 1) {
    return InvalidInput(
        std::string(launcher->name) + " started " + std::to_string(launched) +
        " processes, but this binary's MPI sees each of them alone: launcher and binary belong to "
        "different MPIs; use the mpirun of the MPI that filigree was built with");
  }
  return communicator;
}

}  // namespace

int LaunchedRank() {
  const Launcher* launcher = FindLauncher();
  return IntFromEnvironment(launcher ? launcher->rank_variable : "RANK", 0);
}

StatusOr<std::unique_ptr<Communicator>> Bootstrap() {
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator, Join());
  SetFatalRank(communicator->rank(), communicator->host());
  return communicator;
}

}  // namespace filigree
