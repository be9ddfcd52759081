// Ends a run that makes no progress: mpirun alone notices neither a silent link nor a stuck rank.
//
// Each rank has a thread that tells rank 0's, about once a second and over a TCP connection of its
// own, what the rank is doing (kernels/base/progress.h). Rank 0 ends all ranks when
//   - a rank was not heard of for the timeout (its host is down, or the link),
//   - a rank's connection broke without a good-bye (it was killed),
//   - a rank finished nothing for the timeout: no step, micro-batch, collective, phase of start-up,
//   - a rank's communicator reports an asynchronous error (Communicator::AsyncError).
// It prints one message: what happened, on which host, and where every rank was, those that are
// behind first. A rank that does not hear from rank 0 any more ends itself in the same way.
//
// Ending is Communicator::Abort, and _exit(1) after a grace of a few seconds where that cannot
// reach the others; a launcher that still waits for a lost host is ended too (stuck_launcher.h).
// Its own traffic, some hundred bytes a second and rank, is no part of exchanged_bytes.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/base/status.h"

namespace filigree {

// Puts `*communicator` under a watchdog, until destruction: what takes its place reports its
// collectives as progress and otherwise does as it does. Seconds without progress before it acts;
// 0: nothing changes. Collective. Where ranks cannot connect to rank 0, says so: they watch
// themselves alone. On an error `*communicator` is as it was.
Status Watch(std::unique_ptr<Communicator>* communicator, double timeout_seconds);

}  // namespace filigree
