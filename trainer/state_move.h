// Moves the arrays of a training state into another with other layouts or sizes, on the device:
// topology updates, phase changes, compaction.
//
// A parameter at a time: its array whole as F32 (gathered from the shards that own its pieces where
// no rank holds it so), taken slot by slot into the other layout, and scattered to the pieces and
// the form in which the other state holds it. Cells that both layouts store keep their numbers bit
// for bit, as far as their form can hold them; new ones get theirs; padding is zero.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/flat_buffer.h"
#include "kernels/backend.h"
#include "trainer/parameter.h"

namespace filigree {

// One parameter's way.
struct ParameterMove {
  int source = 0, target = 0;  // segments of the two states
  const Parameter* from = nullptr;
  const Parameter* to = nullptr;
  // The rows and columns of `from` that those of `to` are; empty: the same ones.
  std::vector<int32_t> rows = {}, columns = {};

  // Whether slots change.
  bool remaps() const { return !rows.empty() || !(from->layout == to->layout); }
};

// Of every move the master (and values) and, with `moments`, moments and, where the target keeps
// them, ages: cells that join are `updates_done` updates young, and where the source keeps no ages
// all others were there from the start. Returns the bytes exchanged. Collective over
// `communicator`; waits for `stream`.
int64_t MoveState(const FlatBuffer& from, FlatBuffer& to, std::span<const ParameterMove> moves,
                  bool moments, int64_t updates_done, Communicator& communicator,
                  Backend& backend, Stream& stream);

// Elements of the largest of some moves' parameters: of the source where an array needs to be
// gathered, of the target where slots change, and where its values round through BF16.
struct MoveSizes {
  int64_t gathered = 0, remapped = 0, halves = 0;
};
// The device memory that MoveState takes.
int64_t MoveBytes(const MoveSizes& sizes);

}  // namespace filigree
