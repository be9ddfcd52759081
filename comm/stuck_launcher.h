// Ends an MPI launcher that waits for a host which does not answer.
#pragma once

namespace filigree {

// Where this process was started by mpirun or one of its daemons: leaves a process behind that, a
// few seconds later, ends the launcher if it is still there. Open MPI's mpirun, told to abort, asks
// its daemons to end and waits for their answer for ever, also behind a link that is down. Call it
// on one rank a host, when the run is being ended and nothing else of the launcher is wanted.
void EndStuckLauncher();

}  // namespace filigree
