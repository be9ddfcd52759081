// How the ranks of tcp_communicator.h find each other.
#pragma once

#include <string>
#include <vector>

#include "comm/tcp_communicator.h"
#include "comm/tcp_socket.h"

namespace filigree {

struct TcpStar {
  std::vector<std::string> hosts;  // by rank
  // Rank 0: connections by rank, its own not open. Other ranks: the connection to rank 0 alone.
  std::vector<TcpSocket> links;
};

// Collective; all ranks fail where one does, unless it never came.
StatusOr<TcpStar> MeetOverTcp(const TcpRendezvous& rendezvous);

}  // namespace filigree
