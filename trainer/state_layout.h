// How a phase's parameters lie in the flat arrays of its state (segments, buckets, shards), and by
// which wire their gradients travel.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "comm/flat_buffer.h"
#include "comm/gradient_exchange.h"
#include "kernels/backend.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// Bytes of gradients on the wire a bucket: the run's choice, else ChooseBucketBytes over what is
// stored.
int64_t BucketBytes(const std::vector<Parameter>& parameters, const RunSpec& run, int world_size);
// The segments of parameters of which `counts` elements are stored (segment_count() of each).
std::vector<SegmentSpec> SegmentsOf(const std::vector<Parameter>& parameters,
                                    const std::vector<int64_t>& counts);
std::vector<int64_t> SegmentCounts(const std::vector<Parameter>& parameters);
FlatLayout LayOutSegments(const std::vector<SegmentSpec>& segments, const RunSpec& run,
                          int world_size);
// Where gradients of a phase may share memory: under per-layer updates of one micro-batch a step.
// With several ranks a unit travels while the next is computed.
GradientSlots SlotsOf(const RunSpec& run, int phase, int world_size);
// The flat layout of a model's parameters under the run's ZeRO stage and bucket size.
FlatLayout LayOutParameters(const std::vector<Parameter>& parameters, const RunSpec& run,
                            int world_size);
// The flat state of those parameters in phase `phase` on this rank of `communicator`, all zeros.
// Collective; `communicator` must outlive it.
FlatBuffer MakeFlatBuffer(const std::vector<Parameter>& parameters, const RunSpec& run, int phase,
                          Communicator& communicator, Device& device, Stream& stream);
// The wire that `run` asks for, where it is narrower than its gradients. `backend` must outlive it.
std::optional<NarrowWire> WireOf(const RunSpec& run, Backend& backend);

}  // namespace filigree
