// The communicator without MPI: for launchers that set RANK and WORLD_SIZE, as torchrun does.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "kernels/base/status.h"

namespace filigree {

// Where the ranks meet: rank 0 listens on `port`, the others connect to it at `address`.
struct TcpRendezvous {
  int rank = 0;
  int size = 1;
  std::string address;
  int port = 0;
  // Rank and number of ranks on this host; -1: counted by host names.
  int local_rank = -1;
  int local_size = -1;
  // How long the ranks wait for each other.
  double deadline_seconds = 300;
};

// A star: every collective goes through rank 0, which reduces in order of rank, so all ranks get
// the same bits and a sum depends on the number of ranks alone. Tensors lie in host memory. A call
// returns when its part is done; nothing overlaps with compute. Right for host collectives and for
// CPU ranks on a few hosts; rank 0 moves 2 (size - 1) times the data, so many CPU ranks want MPI,
// and GPUs NCCL.
//
// BF16 is summed in F32 and rounded once.
//
// A rank that leaves closes its connection, which is fatal for those who wait for it. A link that
// goes silent is not noticed here: see watchdog.h.
//
// Errors name ranks, address and port: a port in use, ranks that never came, two processes of one
// rank, different world sizes.
StatusOr<std::unique_ptr<Communicator>> MakeTcpCommunicator(const TcpRendezvous& rendezvous);

}  // namespace filigree
