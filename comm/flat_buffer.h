// The trainable state of a model as flat arrays over a FlatLayout.
//
//   values  compute dtype, whole     what the forward pass reads
//   grads   gradient dtype, whole    what backward adds into; or a few units of it (GradientSlots)
//   master  F32 (F64), own shard     the value that AdamW updates
//   m, v    F32 (F64), own shard     first and second moments
//   born    F32 (F64), own shard     where asked for: the updates done when the element joined
//
// Where `values` already have the master's dtype and there is one shard, master is `values` itself
// and costs nothing; under ZeRO-1 in that dtype, master is the rank's own slices of `values`.
//
// StateFormat makes it smaller. BF16: there is no master, `values` are the weights (numbers of BF16
// in whatever dtype compute has) and moments are BF16. 8-bit moments: codes, with a scale for m and
// one for v a block of 256 elements from the segment's start on (kernels/base/block_quantization.h;
// shards begin at such blocks too); segments shorter than kSmallestQuantized keep whole moments.
//
// Whole arrays hold layout.total_count() elements, shards layout.shard_count(). Padding is zero and
// stays so. Kinds for the device's account: "values", "grads", "master", "moments".
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/flat_layout.h"
#include "comm/state_format.h"
#include "kernels/base/block_quantization.h"
#include "kernels/base/device.h"

namespace filigree {

// Bytes that a FlatBuffer allocates, by kind.
struct StateBytes {
  int64_t values = 0, grads = 0, master = 0, moments = 0;
};
// With `born` the moments include it.
StateBytes PredictStateBytes(const FlatLayout& layout, DType value_dtype, DType grad_dtype,
                             StateFormat format, GradientSlots slots, bool born);

// The moments of a range as they are held.
struct MomentViews {
  TensorView m, v;
  TensorView m_scale = {}, v_scale = {};  // beside codes
};

class FlatBuffer {
 public:
  FlatBuffer() = default;
  // Allocates, and zeroes on `stream`. `shard` is the rank under ZeRO-1, else 0. With `ranks`
  // values and gradients lie in memory that their collectives like best (Communicator::Allocate;
  // collective). The device and `ranks` must outlive the buffer.
  FlatBuffer(Device& device, FlatLayout layout, int shard, DType value_dtype, DType grad_dtype,
             Stream& stream, StateFormat format = {}, GradientSlots slots = {},
             Communicator* ranks = nullptr);

  // Values alone, for inference: no gradients, no optimizer state, nothing owned.
  static FlatBuffer ValuesOnly(Device& device, FlatLayout layout, DType value_dtype,
                               Stream& stream, Communicator* ranks = nullptr);

  // Adds `born`, zeroed on `stream`: elements of a moving topology have an age of their own.
  void AllocateBorn(Stream& stream);

  const FlatLayout& layout() const { return layout_; }
  int shard() const { return shard_; }

  TensorView values() const { return values_; }  // [total_count]
  // All memory of gradients: [total_count] in the order of the layout, or the slots.
  TensorView grads() const { return grads_; }
  TensorView Values(int segment) const;  // [segment count]
  // [segment count]; empty in a buffer of values only.
  TensorView Grads(int segment) const;
  // [bucket count], and what is there of an owned range (within a bucket, where there are slots).
  TensorView BucketGrads(int bucket) const;
  TensorView Grads(const OwnedRange& range) const;

  // The range of the state that belongs to a piece this shard owns.
  TensorView Master(const OwnedRange& range) const;  // `values` where master has no memory
  MomentViews Moments(const OwnedRange& range) const;
  TensorView Born(const OwnedRange& range) const;  // empty where not asked for
  bool has_born() const { return born_.bytes() > 0; }
  // True where master has memory of its own.
  bool has_master() const { return master_.bytes() > 0; }
  // Of master and born, and of what GatherSegment returns.
  DType master_dtype() const { return master_dtype_; }
  StateFormat format() const { return format_; }
  GradientSlots slots() const { return slots_; }
  // Whether this segment's moments are codes.
  bool quantized(int segment) const {
    return format_.eight_bit_moments && layout_.segments()[segment].count >= kSmallestQuantized;
  }
  Device& device() const { return *device_; }
  const std::vector<OwnedRange>& owned() const { return owned_; }

 private:
  void AllocateMoments(Stream& stream);

  // Where a range lies in the arrays of whole moments beside codes.
  int64_t SmallBegin(const OwnedRange& range) const;
  DType moment_dtype() const { return format_.bf16 ? DType::kBF16 : master_dtype_; }

  Device* device_ = nullptr;
  FlatLayout layout_;
  int shard_ = 0;
  std::vector<OwnedRange> owned_;
  StateFormat format_;
  GradientSlots slots_;
  std::vector<int64_t> grads_begin_;  // of each bucket
  DeviceBuffer values_buffer_, grads_buffer_, master_, born_;
  DeviceBuffer m_, v_;              // whole moments, of all segments or of the small ones
  DeviceBuffer m_codes_, v_codes_;  // beside scales
  DeviceBuffer m_scales_, v_scales_;
  std::vector<int64_t> small_begin_;  // by segment, of the small ones beside codes
  TensorView values_, grads_;
  DType master_dtype_ = DType::kF32;
};

// Which array of the state.
enum class StateKind { kMaster, kM, kV, kBorn };

// The whole array of one segment, gathered on every rank from the shards that own its pieces: the
// common step of checkpoints and of topology or phase changes. Host memory, the segment's count of
// elements as numbers of the master's dtype, however they are held. Synchronises `stream`.
// Collective over `communicator`, whose rank is the shard; with one shard there is no traffic.
std::vector<std::byte> GatherSegment(const FlatBuffer& buffer, int segment, StateKind kind,
                                     Communicator& communicator, Stream& stream);
// One array of a piece that this shard owns, as it is held: numbers of the master's dtype, BF16, or
// codes with the scales beside them. Born: empty where not asked for.
struct HeldPiece {
  TensorView elements, scales = {};
  QuantizationMap map = QuantizationMap::kSigned;
};
HeldPiece Held(const FlatBuffer& buffer, const OwnedRange& range, StateKind kind);
// Sends each shard's piece of `whole`, an array of the segment's count of elements in host or device
// memory, to all ranks. Collective.
void BroadcastPieces(const FlatBuffer& buffer, int segment, TensorView whole,
                     Communicator& communicator, Stream& stream);
// The inverse of GatherSegment, without traffic: every rank is given the whole array and keeps the
// pieces it owns, rounded (to nearest) or quantised as they are held. Scattering what was gathered
// changes nothing. Scattering the master also writes the segment's values, all of them on every
// rank, rounded to their dtype. Synchronises `stream`.
void ScatterSegment(FlatBuffer& buffer, int segment, StateKind kind,
                    std::span<const std::byte> whole, Stream& stream);

}  // namespace filigree
