#include "trainer/stop_signal.h"

#include <csignal>
#include <initializer_list>

namespace filigree {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

void HandleStop(int) { stop_requested = 1; }

}  // namespace

void WatchStopSignals() {
  struct sigaction action = {};
  action.sa_handler = HandleStop;
  action.sa_flags = SA_RESTART;  // reads and writes under way go on
  for (int signal : {SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
}

bool StopRequested() { return stop_requested != 0; }

}  // namespace filigree
