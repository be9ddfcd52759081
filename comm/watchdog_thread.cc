#include "comm/watchdog_thread.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>

#include "comm/own_addresses.h"
#include "comm/stuck_launcher.h"
#include "kernels/base/log.h"
#include "kernels/base/progress.h"

namespace filigree {
namespace {

using std::chrono::steady_clock;

constexpr double kConnectSeconds = 3;  // to one address of rank 0's host
// Rank 0 judges first; the others act where its word does not reach them.
constexpr double kRankSlackSeconds = 4;
constexpr auto kAbortGrace = std::chrono::seconds(3);

double SecondsSince(Deadline time) {
  return std::chrono::duration<double>(steady_clock::now() - time).count();
}

// A connection a rank: more than the usual limit of open files allows.
void AllowManyFiles() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

template <size_t kSize>
void Put(const std::string& text, char (&field)[kSize]) {
  field[text.copy(field, kSize - 1)] = 0;
}

template <size_t kSize>
std::string Get(const char (&field)[kSize]) {
  return std::string(field, strnlen(field, kSize));
}

}  // namespace

WatchdogThread::WatchdogThread(Communicator& communicator, double timeout_seconds)
    : communicator_(communicator), timeout_seconds_(timeout_seconds) {}

WatchdogThread::~WatchdogThread() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
}

// "port token host address address ...": where and as what to greet.
Status WatchdogThread::Invite(std::string* invitation) {
  AllowManyFiles();
  ASSIGN_OR_RETURN(listener_, ListenTcp(0));
  fcntl(listener_.fd(), F_SETFL, O_NONBLOCK);
  std::random_device random;
  token_ = (static_cast<uint64_t>(random()) << 32) | random();
  std::ostringstream text;
  text << listener_.port() << " " << token_ << " " << communicator_.host();
  for (const std::string& address : OwnAddresses()) text << " " << address;
  *invitation = text.str();
  return OkStatus();
}

// Connects to the first address that answers.
bool WatchdogThread::Accept(const std::string& invitation) {
  std::istringstream text(invitation);
  int port = 0;
  std::string address, problem;
  Peer& peer = peers_.front();
  text >> port >> token_ >> peer.report.host;
  std::vector<std::string> addresses;
  if (peer.report.host == communicator_.host()) addresses.emplace_back("127.0.0.1");
  while (text >> address) addresses.push_back(address);
  for (const std::string& candidate : addresses) {
    peer.link.socket = ConnectTcp(candidate, port, DeadlineIn(kConnectSeconds), &problem);
    if (peer.link.socket.open()) break;
  }
  // Said at once: a rank that dies in its first second is known.
  const Message hello = Say(Kind::kAlive);
  peer.report.connected = peer.link.socket.open() && peer.link.socket.Send(&hello, sizeof(hello));
  return peer.report.connected;
}

Status WatchdogThread::Start() {
  peers_.resize(root() ? communicator_.size() - 1 : 1);
  for (size_t i = 0; i < peers_.size(); ++i) {
    peers_[i].report.rank = root() ? static_cast<int>(i) + 1 : 0;
    peers_[i].heard = steady_clock::now();
  }
  std::string invitation;
  Status listening;
  if (root()) listening = Invite(&invitation);
  communicator_.BroadcastHost(&invitation, 0);
  if (!listening.ok()) return listening;
  if (invitation.empty()) return MachineError("rank 0's watchdog cannot listen; see its message");
  int64_t unreached = !root() && !Accept(invitation);
  communicator_.AllReduceHost(std::span<int64_t>(&unreached, 1), ReduceOp::kSum);
  if (unreached > 0) {
    LogWarning(std::to_string(unreached) + " of " + std::to_string(communicator_.size()) +
               " ranks cannot connect to the watchdog of rank 0 on " + communicator_.host() +
               " (a firewall?): they watch themselves alone");
  }
  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return OkStatus();
}

void WatchdogThread::Run() {
  const auto period = std::chrono::milliseconds(
      static_cast<int>(1000 * std::clamp(timeout_seconds_ / 10, 0.05, 1.0)));
  Deadline next = steady_clock::now();
  while (!stopping_) {
    // Short enough that a good-bye does not hold up the end of a run.
    WaitForInput(std::min(period, std::chrono::milliseconds(100)));
    TakeNewcomers();
    ReadPeers();
    if (steady_clock::now() < next) continue;
    next = steady_clock::now() + period;
    Tell(Kind::kAlive);
    if (told_to_end_) End("");
    if (const std::string verdict = Verdict(); !verdict.empty()) End(verdict);
  }
  Tell(Kind::kBye);
  // A connection closed over unread bytes would be reset.
  ReadPeers();
}

void WatchdogThread::WaitForInput(std::chrono::milliseconds time) {
  std::vector<pollfd> waiting;
  const auto add = [&](const TcpSocket& socket) {
    if (socket.open()) waiting.push_back({.fd = socket.fd(), .events = POLLIN, .revents = 0});
  };
  add(listener_);
  for (const Link& link : newcomers_) add(link.socket);
  for (const Peer& peer : peers_) add(peer.link.socket);
  poll(waiting.data(), waiting.size(), static_cast<int>(time.count()));
}

void WatchdogThread::TakeNewcomers() {
  while (listener_.open()) {
    Link link;
    link.socket = AcceptTcp(listener_, steady_clock::now());
    if (!link.socket.open()) break;
    newcomers_.push_back(std::move(link));
  }
  std::vector<Link> unknown;
  for (Link& link : newcomers_) {
    int rank = -1;
    Message first;
    const bool open = Read(link, [&](const Message& message) {
      if (message.token == token_) rank = message.rank;
      first = message;
    });
    if (rank > 0 && rank <= static_cast<int>(peers_.size())) {
      Peer& peer = peers_[rank - 1];
      peer.link = std::move(link);
      peer.report.connected = true;
      Take(peer, first);
    } else if (open) {
      unknown.push_back(std::move(link));
    }
  }
  newcomers_ = std::move(unknown);
}

bool WatchdogThread::Read(Link& link, const std::function<void(const Message&)>& take) {
  while (true) {
    const ssize_t received = recv(link.socket.fd(), link.buffer + link.filled,
                                  sizeof(Message) - link.filled, MSG_DONTWAIT);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (received <= 0) return false;
    link.filled += static_cast<size_t>(received);
    if (link.filled < sizeof(Message)) continue;
    link.filled = 0;
    Message message;
    std::memcpy(&message, link.buffer, sizeof(message));
    take(message);
  }
}

void WatchdogThread::Take(Peer& peer, const Message& message) {
  if (message.token != token_) return;
  peer.heard = steady_clock::now();
  RankReport& report = peer.report;
  report.host = Get(message.host);
  report.step = message.step;
  report.collectives = message.collectives;
  report.doing = Get(message.doing);
  report.error = Get(message.error);
  report.idle_seconds = message.idle_seconds;
  report.left |= message.kind == Kind::kBye;
  told_to_end_ |= message.kind == Kind::kEnd;
}

void WatchdogThread::ReadPeers() {
  for (Peer& peer : peers_) {
    if (!peer.link.socket.open()) continue;
    if (Read(peer.link, [&](const Message& message) { Take(peer, message); })) continue;
    peer.link.socket.Close();
    peer.broke = steady_clock::now();
    if (!peer.report.left) peer.report.broken_seconds = 0;
  }
}

void WatchdogThread::Tell(Kind kind) {
  const Message message = Say(kind);
  for (Peer& peer : peers_) {
    // What does not fit into the connection's buffer is lost with the silence that filled it.
    if (peer.link.socket.open()) {
      send(peer.link.socket.fd(), &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
  }
}

WatchdogThread::Message WatchdogThread::Say(Kind kind) const {
  const RankReport own = OwnReport();
  Message message;
  message.token = token_;
  message.kind = kind;
  message.rank = own.rank;
  message.step = own.step;
  message.collectives = own.collectives;
  message.idle_seconds = own.idle_seconds;
  Put(own.host, message.host);
  Put(own.doing, message.doing);
  Put(own.error, message.error);
  return message;
}

RankReport WatchdogThread::OwnReport() const {
  const Progress progress = ReadProgress();
  RankReport report;
  report.rank = communicator_.rank();
  report.host = communicator_.host();
  report.connected = true;
  report.error = communicator_.AsyncError();
  report.step = progress.step;
  report.collectives = progress.collectives;
  report.doing = progress.activity;
  if (progress.collective) report.doing += std::string(", in ") + progress.collective;
  report.idle_seconds = progress.idle_seconds;
  return report;
}

std::string WatchdogThread::Verdict() {
  std::vector<RankReport> ranks = {OwnReport()};
  for (Peer& peer : peers_) {
    RankReport& report = peer.report;
    if (report.broken_seconds >= 0) report.broken_seconds = SecondsSince(peer.broke);
    report.silent_seconds = SecondsSince(peer.heard);
    ranks.push_back(report);
  }
  const bool alone = !root() && (!peers_.front().report.connected || peers_.front().report.left);
  if (root() || alone) return Judge(ranks, timeout_seconds_);
  // An error of this rank's own goes to rank 0 with each message, and rank 0 judges.
  ranks[0].error.clear();
  return Judge(ranks, timeout_seconds_ + kRankSlackSeconds);
}

void WatchdogThread::End(const std::string& verdict) {
  if (!verdict.empty()) {
    std::fprintf(stderr, "filigree: watchdog of rank %d on %s ends the run: %s\n",
                 communicator_.rank(), communicator_.host().c_str(), verdict.c_str());
    std::fflush(stderr);
  }
  if (root()) Tell(Kind::kEnd);
  if (communicator_.local_rank() == 0) EndStuckLauncher();
  // Telling the launcher may take for ever too.
  std::thread([] {
    std::this_thread::sleep_for(kAbortGrace);
    _exit(1);
  }).detach();
  communicator_.Abort(1);
  std::_Exit(1);
}

}  // namespace filigree
