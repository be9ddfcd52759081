#include "comm/bootstrap.h"

#include <cstdlib>
#include <string>

#include "comm/mpi_communicator.h"

namespace filigree {
namespace {

// What a launcher leaves in the environment of its processes.
struct Launcher {
  const char* name;
  const char* sign;           // always there
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
    if (std::getenv(launcher.sign)) return &launcher;
  }
  return nullptr;
}

int IntFromEnvironment(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

// MPI where there is a launcher, else alone.
StatusOr<std::unique_ptr<Communicator>> Join() {
  const Launcher* launcher = FindLauncher();
  if (!launcher && !MpiIsInitialized()) {
    // Set by srun alone: a batch script or allocation in which no srun runs does not have it.
    const int tasks = IntFromEnvironment("SLURM_STEP_NUM_TASKS", 1);
    if (tasks == 1) return MakeSingleProcessCommunicator();
    return InvalidInput("srun started " + std::to_string(tasks) +
                        " processes without a way to find each other; use srun --mpi=pmix (srun "
                        "--mpi=list shows what this Slurm has), or mpirun");
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

StatusOr<std::unique_ptr<Communicator>> Bootstrap() {
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator, Join());
  SetFatalRank(communicator->rank(), communicator->host());
  return communicator;
}

}  // namespace filigree
