// The thread behind watchdog.h, and its connections.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/tcp_socket.h"
#include "comm/watchdog_board.h"
#include "kernels/base/status.h"

namespace filigree {

class WatchdogThread {
 public:
  WatchdogThread(Communicator& communicator, double timeout_seconds);
  // Says good-bye to the others.
  ~WatchdogThread();
  WatchdogThread(const WatchdogThread&) = delete;
  WatchdogThread& operator=(const WatchdogThread&) = delete;

  // Connects to rank 0 and starts the thread. Collective.
  Status Start();

 private:
  enum class Kind : int32_t { kAlive, kBye, kEnd };
  // All that crosses the connections, in both directions.
  struct Message {
    uint64_t token = 0;  // of this run
    Kind kind = Kind::kAlive;
    int32_t rank = 0;
    int64_t step = -1;
    int64_t collectives = 0;
    double idle_seconds = 0;
    char host[64] = {};
    char doing[96] = {};
    char error[160] = {};
  };
  // A connection with what was read of its next message.
  struct Link {
    TcpSocket socket;
    std::byte buffer[sizeof(Message)];
    size_t filled = 0;
  };
  // A peer: rank 0 has all other ranks, these have rank 0.
  struct Peer {
    Link link;
    RankReport report;
    Deadline heard, broke;
  };

  bool root() const { return communicator_.rank() == 0; }
  Status Invite(std::string* invitation);
  bool Accept(const std::string& invitation);
  void Run();
  void WaitForInput(std::chrono::milliseconds time);
  void TakeNewcomers();
  // False: the connection broke.
  bool Read(Link& link, const std::function<void(const Message&)>& take);
  void Take(Peer& peer, const Message& message);
  void ReadPeers();
  void Tell(Kind kind);
  Message Say(Kind kind) const;
  RankReport OwnReport() const;
  std::string Verdict();
  [[noreturn]] void End(const std::string& verdict);

  Communicator& communicator_;
  const double timeout_seconds_;
  uint64_t token_ = 0;
  TcpSocket listener_;           // rank 0
  std::vector<Link> newcomers_;  // rank 0: connected, not yet known
  std::vector<Peer> peers_;
  std::atomic<bool> stopping_ = false;
  bool told_to_end_ = false;
  std::thread thread_;
};

}  // namespace filigree
