// Ranks decide together: an error on one is an error on all, so that nobody waits for a peer that
// left.
#pragma once

#include "comm/communicator.h"
#include "kernels/base/status.h"

namespace filigree {

// `status` where all ranks are OK; else, on every rank, the error of the lowest rank that has one.
// Collective.
Status AgreeOnStatus(const Status& status, Communicator& communicator);

}  // namespace filigree
