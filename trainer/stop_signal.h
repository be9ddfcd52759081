// SIGTERM and SIGUSR1 ask a run to save and end. The handler only sets a flag; the trainer looks at
// it between steps, and the ranks agree before any of them stops.
#pragma once

namespace filigree {

// Installs the handlers of this process.
void WatchStopSignals();
// True once one of the signals has arrived.
bool StopRequested();

}  // namespace filigree
