#include "comm/tcp_rendezvous.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>

namespace filigree {
namespace {

constexpr uint64_t kMagic = 0x31304c4946504354;  // "TCPFIL01"
constexpr size_t kHostBytes = 64;
// Whoever connects and is no rank says nothing, or something else; ranks speak at once.
constexpr double kHelloSeconds = 5;

struct Hello {
  uint64_t magic = kMagic;
  int32_t rank = 0;
  int32_t size = 0;
  char host[kHostBytes] = {};
};

Hello HelloOf(const TcpRendezvous& rendezvous) {
  Hello hello;
  hello.rank = rendezvous.rank;
  hello.size = rendezvous.size;
  HostName().copy(hello.host, kHostBytes - 1);
  return hello;
}

std::string Place(const TcpRendezvous& rendezvous) {
  return rendezvous.address + ":" + std::to_string(rendezvous.port);
}

// "1, 2, 5 and 12 more"
std::string MissingRanks(const std::vector<TcpSocket>& links) {
  constexpr int kNamed = 8;
  std::string names;
  int missing = 0;
  for (size_t rank = 1; rank < links.size(); ++rank) {
    if (links[rank].open()) continue;
    if (missing++ < kNamed) names += (names.empty() ? "" : ", ") + std::to_string(rank);
  }
  return missing > kNamed ? names + " and " + std::to_string(missing - kNamed) + " more" : names;
}

// What is wrong with a newcomer; empty: nothing.
std::string Refusal(const Hello& hello, const TcpRendezvous& rendezvous, const TcpStar& star) {
  const std::string who = "rank " + std::to_string(hello.rank) + " on " + hello.host;
  if (hello.size != rendezvous.size) {
    return who + " was started with WORLD_SIZE=" + std::to_string(hello.size) +
           ", rank 0 with WORLD_SIZE=" + std::to_string(rendezvous.size) +
           "; start all with the same";
  }
  if (hello.rank < 1 || hello.rank >= hello.size) {
    return who + " is no rank of WORLD_SIZE=" + std::to_string(hello.size) +
           "; ranks are 0 to WORLD_SIZE - 1";
  }
  if (star.links[hello.rank].open()) {
    return "rank " + std::to_string(hello.rank) + " was started twice, on " +
           star.hosts[hello.rank] + " and on " + hello.host + "; give every process its own RANK";
  }
  return "";
}

// An answer: the length of a text, and the text; empty: welcome.
bool SendAnswer(TcpSocket& link, const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  return link.Send(&size, sizeof(size)) && link.Send(text.data(), size);
}

Status RefuseAll(TcpStar& star, TcpSocket* newcomer, const std::string& problem) {
  for (TcpSocket& link : star.links) {
    if (link.open()) SendAnswer(link, problem);
  }
  if (newcomer) SendAnswer(*newcomer, problem);
  return newcomer ? InvalidInput(problem) : MachineError(problem);
}

StatusOr<TcpStar> MeetAsRoot(const TcpRendezvous& rendezvous) {
  auto listener = ListenTcp(rendezvous.port);
  if (!listener.ok()) {
    return MachineError(listener.status().message() + "; set MASTER_PORT to a free port");
  }
  const Deadline deadline = DeadlineIn(rendezvous.deadline_seconds);
  TcpStar star;
  star.hosts.resize(rendezvous.size);
  star.links.resize(rendezvous.size);
  star.hosts[0] = HostName();
  for (int met = 1; met < rendezvous.size;) {
    TcpSocket link = AcceptTcp(*listener, deadline);
    if (!link.open()) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      return RefuseAll(star, nullptr,
                       "rank " + MissingRanks(star.links) + " of " +
                           std::to_string(rendezvous.size) + " did not reach rank 0 at " +
                           Place(rendezvous) + " within " +
                           std::to_string(static_cast<int>(rendezvous.deadline_seconds)) +
                           " s; were they started, with this MASTER_ADDR and MASTER_PORT?");
    }
    Hello hello;
    link.SetReceiveTimeout(kHelloSeconds);
    if (!link.Receive(&hello, sizeof(hello)) || hello.magic != kMagic) continue;
    link.SetReceiveTimeout(0);
    hello.host[kHostBytes - 1] = 0;
    if (const std::string problem = Refusal(hello, rendezvous, star); !problem.empty()) {
      return RefuseAll(star, &link, problem);
    }
    star.hosts[hello.rank] = hello.host;
    star.links[hello.rank] = std::move(link);
    ++met;
  }
  std::vector<char> table(kHostBytes * rendezvous.size);
  for (int rank = 0; rank < rendezvous.size; ++rank) {
    star.hosts[rank].copy(&table[kHostBytes * rank], kHostBytes - 1);
  }
  for (int rank = 1; rank < rendezvous.size; ++rank) {
    // One that is gone already shows at the first collective.
    if (SendAnswer(star.links[rank], "")) star.links[rank].Send(table.data(), table.size());
  }
  return star;
}

StatusOr<TcpStar> MeetRoot(const TcpRendezvous& rendezvous) {
  const std::string me = "rank " + std::to_string(rendezvous.rank) + " on " + HostName();
  std::string problem;
  TcpSocket link = ConnectTcp(rendezvous.address, rendezvous.port,
                              DeadlineIn(rendezvous.deadline_seconds), &problem);
  if (!link.open()) {
    return MachineError(me + " cannot reach rank 0 at " + Place(rendezvous) + " within " +
                        std::to_string(static_cast<int>(rendezvous.deadline_seconds)) + " s: " +
                        problem + "; was rank 0 started, with this MASTER_ADDR and MASTER_PORT?");
  }
  const Hello hello = HelloOf(rendezvous);
  uint32_t size = 0;
  // Rank 0 answers when all are there, or when its own deadline passed.
  link.SetReceiveTimeout(rendezvous.deadline_seconds + 2 * kHelloSeconds);
  if (!link.Send(&hello, sizeof(hello)) || !link.Receive(&size, sizeof(size)) || size > 4096) {
    return MachineError(me + ": what listens at " + Place(rendezvous) +
                        " is not rank 0 of filigree, or it ended; see its message, or set "
                        "MASTER_PORT to a free port");
  }
  std::string refusal(size, '\0');
  std::vector<char> table(kHostBytes * rendezvous.size);
  const bool whole =
      link.Receive(refusal.data(), size) && (size > 0 || link.Receive(table.data(), table.size()));
  if (!whole) return MachineError(me + ": rank 0 at " + Place(rendezvous) + " ended");
  if (size > 0) return InvalidInput(refusal);
  link.SetReceiveTimeout(0);
  TcpStar star;
  for (int rank = 0; rank < rendezvous.size; ++rank) {
    star.hosts.emplace_back(&table[kHostBytes * rank]);
  }
  star.links.push_back(std::move(link));
  return star;
}

}  // namespace

StatusOr<TcpStar> MeetOverTcp(const TcpRendezvous& rendezvous) {
  return rendezvous.rank == 0 ? MeetAsRoot(rendezvous) : MeetRoot(rendezvous);
}

}  // namespace filigree
