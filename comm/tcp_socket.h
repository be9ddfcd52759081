// TCP connections between ranks: for the communicator without MPI and for the watchdog.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "kernels/base/status.h"

namespace filigree {

using Deadline = std::chrono::steady_clock::time_point;
Deadline DeadlineIn(double seconds);

// This machine's name, as gethostname has it.
std::string HostName();

// A socket with one owner; move-only; closes itself.
class TcpSocket {
 public:
  TcpSocket() = default;
  explicit TcpSocket(int fd) : fd_(fd) {}
  TcpSocket(TcpSocket&& other) noexcept { *this = std::move(other); }
  TcpSocket& operator=(TcpSocket&& other) noexcept;
  ~TcpSocket() { Close(); }

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close();
  // The local port.
  int port() const;

  // All bytes, blocking. False: the peer is gone, or was silent for longer than SetReceiveTimeout.
  bool Send(const void* data, size_t bytes);
  bool Receive(void* data, size_t bytes);
  // 0: for ever.
  void SetReceiveTimeout(double seconds);

 private:
  int fd_ = -1;
};

// Listens on all of this host's addresses, IPv4 and IPv6; port 0: one that the system chooses.
StatusOr<TcpSocket> ListenTcp(int port);
// The next connection; not open where none came before the deadline.
TcpSocket AcceptTcp(const TcpSocket& listener, Deadline deadline);
// Keeps trying, also where nobody listens yet, until the deadline. Not open: the reason is in
// `problem`.
TcpSocket ConnectTcp(const std::string& host, int port, Deadline deadline, std::string* problem);

}  // namespace filigree
