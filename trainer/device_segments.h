// Gathering and scattering the state of one segment in the device's memory: GatherSegment and
// ScatterSegment (comm/flat_buffer.h) without the host, for what changes state while a run goes on.
// The same bits and the same traffic.
#pragma once

#include "comm/communicator.h"
#include "comm/flat_buffer.h"
#include "kernels/backend.h"

namespace filigree {

// Whether this rank holds the segment's whole array as F32.
bool HoldsWhole(const FlatBuffer& buffer, int segment, StateKind kind);

// The whole array of one segment as F32 in device memory: the state's own where this rank holds it
// so, else gathered into `memory` [segment count], of which nothing is needed in the first case. Of
// an F32 state. Collective.
ConstTensorView GatherOnDevice(const FlatBuffer& buffer, int segment, StateKind kind,
                               TensorView memory, Communicator& communicator, Backend& backend,
                               Stream& stream);

// The inverse, without traffic, from F32: of the whole segment, or of as much of it as `part` holds
// from element `begin` on, a multiple of 256. Scattering the master also writes the segment's values,
// rounded to their dtype. `part` may be the state's own memory of that array. `halves`, BF16 of its
// size, is needed where RoundsThroughHalves says so.
void ScatterOnDevice(FlatBuffer& buffer, int segment, StateKind kind, ConstTensorView part,
                     TensorView halves, Backend& backend, Stream& stream, int64_t begin = 0);
// Values are numbers of BF16 in F32's form.
bool RoundsThroughHalves(const FlatBuffer& buffer);

}  // namespace filigree
