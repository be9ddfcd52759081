#include "comm/tcp_socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

namespace filigree {
namespace {

constexpr auto kRetryInterval = std::chrono::milliseconds(50);

int MillisecondsUntil(Deadline deadline) {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1 << 30));
}

void SetOption(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof(value));
}

// Small messages leave at once.
void Prepare(int fd) { SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1); }

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

AddressList Resolve(const std::string& host, int port, std::string* problem) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (code != 0) *problem = gai_strerror(code);
  return AddressList(code == 0 ? list : nullptr, &freeaddrinfo);
}

// One attempt at one address; 0 or an errno.
int TryConnect(int fd, const addrinfo& address, Deadline deadline) {
  fcntl(fd, F_SETFL, O_NONBLOCK);
  if (connect(fd, address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return errno;
    pollfd waiting = {.fd = fd, .events = POLLOUT, .revents = 0};
    if (poll(&waiting, 1, MillisecondsUntil(deadline)) <= 0) return ETIMEDOUT;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return error;
  }
  fcntl(fd, F_SETFL, 0);
  Prepare(fd);
  return 0;
}

}  // namespace

Deadline DeadlineIn(double seconds) {
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(
             std::chrono::duration<double>(seconds));
}

std::string HostName() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

TcpSocket& TcpSocket::operator=(TcpSocket&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd_ = std::exchange(other.fd_, -1);
  return *this;
}

void TcpSocket::Close() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

int TcpSocket::port() const {
  sockaddr_in6 address = {};
  socklen_t size = sizeof(address);
  CHECK_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin6_port);  // at the same place in an IPv4 address
}

bool TcpSocket::Send(const void* data, size_t bytes) {
  const auto* next = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd_, next, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    next += sent;
    bytes -= static_cast<size_t>(sent);
  }
  return true;
}

bool TcpSocket::Receive(void* data, size_t bytes) {
  auto* next = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t received = recv(fd_, next, bytes, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return false;
    next += received;
    bytes -= static_cast<size_t>(received);
  }
  return true;
}

void TcpSocket::SetReceiveTimeout(double seconds) {
  timeval timeout = {};
  timeout.tv_sec = static_cast<time_t>(seconds);
  timeout.tv_usec = static_cast<suseconds_t>(1e6 * (seconds - std::floor(seconds)));
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
}

StatusOr<TcpSocket> ListenTcp(int port) {
  // An IPv6 socket takes IPv4 connections too; where the kernel has no IPv6, an IPv4 one.
  TcpSocket listener(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 any6 = {};
  any6.sin6_family = AF_INET6;
  any6.sin6_port = htons(static_cast<uint16_t>(port));
  sockaddr_in any4 = {};
  any4.sin_family = AF_INET;
  any4.sin_port = any6.sin6_port;
  const auto* address = reinterpret_cast<const sockaddr*>(&any6);
  socklen_t size = sizeof(any6);
  if (listener.open()) {
    SetOption(listener.fd(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  } else {
    listener = TcpSocket(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    address = reinterpret_cast<const sockaddr*>(&any4);
    size = sizeof(any4);
  }
  // A port that a run used a moment ago may be used again.
  SetOption(listener.fd(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(listener.fd(), address, size) != 0 || listen(listener.fd(), SOMAXCONN) != 0) {
    return MachineError("cannot listen on port " + std::to_string(port) + " of " + HostName() +
                        ": " + std::strerror(errno));
  }
  return listener;
}

TcpSocket AcceptTcp(const TcpSocket& listener, Deadline deadline) {
  pollfd waiting = {.fd = listener.fd(), .events = POLLIN, .revents = 0};
  if (poll(&waiting, 1, MillisecondsUntil(deadline)) <= 0) return TcpSocket();
  TcpSocket accepted(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  if (accepted.open()) Prepare(accepted.fd());
  return accepted;
}

TcpSocket ConnectTcp(const std::string& host, int port, Deadline deadline, std::string* problem) {
  while (true) {
    const AddressList addresses = Resolve(host, port, problem);
    for (const addrinfo* address = addresses.get(); address; address = address->ai_next) {
      TcpSocket attempt(socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (!attempt.open()) continue;
      const int error = TryConnect(attempt.fd(), *address, deadline);
      if (error == 0) return attempt;
      *problem = std::strerror(error);
    }
    if (std::chrono::steady_clock::now() + kRetryInterval >= deadline) return TcpSocket();
    std::this_thread::sleep_for(kRetryInterval);
  }
}

}  // namespace filigree
