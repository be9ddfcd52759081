#include "comm/bootstrap.h"

#include <cstdlib>
#include <string>

#include "comm/mpi_communicator.h"

namespace filigree {
namespace {

// What launchers leave in the environment: the number of processes they started, or just a sign of
// theirs.
struct Launcher {
  const char* name;
  const char* size_variable;  // nullptr: the launcher does not say
  const char* sign;
};
constexpr Launcher kLaunchers[] = {
    {"Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"MPICH's mpiexec", "PMI_SIZE", "PMI_RANK"},
    {"a PMIx launcher", nullptr, "PMIX_RANK"},
};

}  // namespace

StatusOr<std::unique_ptr<Communicator>> Bootstrap() {
  const Launcher* launcher = nullptr;
  int launched = 1;
  for (const Launcher& candidate : kLaunchers) {
    if (launcher || !std::getenv(candidate.sign)) continue;
    launcher = &candidate;
    const char* size = candidate.size_variable ? std::getenv(candidate.size_variable) : nullptr;
    if (size) launched = std::atoi(size);
  }
  if (!launcher && !MpiIsInitialized()) return MakeSingleProcessCommunicator();
  std::unique_ptr<Communicator> communicator = MakeMpiCommunicator();
  if (launched > 1 && communicator->size() == 1) {
    return InvalidInput(
        std::string(launcher->name) + " started " + std::to_string(launched) +
        " processes, but this binary's MPI sees each of them alone: launcher and binary "
        "belong to different MPIs; use the mpirun of the MPI that filigree was built with");
  }
  return communicator;
}

}  // namespace filigree
