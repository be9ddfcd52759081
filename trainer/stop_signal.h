// SIGTERM and SIGUSR1 ask a run to save and end. The handler only sets a flag; the trainer looks at
// it before each step, the first one too, and the ranks agree before any of them stops.
#pragma once

namespace filigree {

// Installs the handlers of this process: the first thing that a command which trains does.
void WatchStopSignals();
// True once one of the signals has arrived.
bool StopRequested();

}  // namespace filigree
