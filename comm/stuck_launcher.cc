#include "comm/stuck_launcher.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string_view>

namespace filigree {
namespace {

constexpr unsigned kGraceSeconds = 4;
// mpirun ends in order at the first signal, at once at a later one, if it can.
constexpr int kSignals[] = {SIGTERM, SIGTERM, SIGTERM, SIGKILL};

constexpr std::string_view kLaunchers[] = {"mpirun",  "mpiexec", "orterun",        "orted",
                                           "prterun", "prted",   "hydra_pmi_proxy"};

bool IsLauncher(pid_t pid) {
  char path[32], name[32];
  std::snprintf(path, sizeof(path), "/proc/%d/comm", static_cast<int>(pid));
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t size = read(file, name, sizeof(name));
  close(file);
  if (size <= 1) return false;
  const std::string_view found(name, static_cast<size_t>(size) - 1);  // a line
  return std::find(std::begin(kLaunchers), std::end(kLaunchers), found) != std::end(kLaunchers);
}

}  // namespace

void EndStuckLauncher() {
  const pid_t launcher = getppid();
  if (!IsLauncher(launcher)) return;
  if (fork() != 0) return;
  // Apart from the ranks, whom the launcher ends as a group, and from its pipes, which a reader
  // takes for a run that goes on. Only calls that are safe after a fork with threads.
  setsid();
  for (int file = 0; file < 3; ++file) close(file);
  sleep(kGraceSeconds);
  for (const int number : kSignals) {
    if (!IsLauncher(launcher)) break;
    kill(launcher, number);
    sleep(1);
  }
  _exit(0);
}

}  // namespace filigree
