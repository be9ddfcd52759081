// The trainable state of a model as flat arrays over a FlatLayout.
//
//   values  compute dtype, whole     what the forward pass reads
//   grads   gradient dtype, whole    what backward adds into
//   master  F32 (F64), own shard     the value that AdamW updates
//   m, v    F32 (F64), own shard     first and second moments
//   born    F32 (F64), own shard     where asked for: the updates done when the element joined
//
// Where `values` already have the master's dtype and there is one shard, master is `values` itself
// and costs nothing; under ZeRO-1 in that dtype, master is the rank's own slices of `values`.
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
#include "kernels/base/device.h"

namespace filigree {

class FlatBuffer {
 public:
  FlatBuffer() = default;
  // Allocates, and zeroes on `stream`. `shard` is the rank under ZeRO-1, else 0. The device must
  // outlive the buffer.
  FlatBuffer(Device& device, FlatLayout layout, int shard, DType value_dtype, DType grad_dtype,
             Stream& stream);

  // Values alone, for inference: no gradients, no optimizer state, nothing owned.
  static FlatBuffer ValuesOnly(Device& device, FlatLayout layout, DType value_dtype,
                               Stream& stream);

  // Adds `born`, zeroed on `stream`: elements of a moving topology have an age of their own.
  void AllocateBorn(Stream& stream);

  const FlatLayout& layout() const { return layout_; }
  int shard() const { return shard_; }

  TensorView values() const { return values_; }  // [total_count]
  TensorView grads() const { return grads_; }    // [total_count]
  TensorView Values(int segment) const;          // [segment count]
  // [segment count]; empty in a buffer of values only.
  TensorView Grads(int segment) const;

  // The range of the state that belongs to a piece this shard owns.
  TensorView Master(const OwnedRange& range) const;
  TensorView M(const OwnedRange& range) const;
  TensorView V(const OwnedRange& range) const;
  TensorView Born(const OwnedRange& range) const;  // empty where not asked for
  bool has_born() const { return born_.bytes() > 0; }
  // True where master has memory of its own.
  bool has_master() const { return master_.bytes() > 0; }
  DType master_dtype() const { return master_dtype_; }
  Device& device() const { return *device_; }
  const std::vector<OwnedRange>& owned() const { return owned_; }

 private:
  TensorView Piece(const DeviceBuffer& buffer, const OwnedRange& range) const;

  Device* device_ = nullptr;
  FlatLayout layout_;
  int shard_ = 0;
  std::vector<OwnedRange> owned_;
  DeviceBuffer values_buffer_, grads_buffer_, master_, m_, v_, born_;
  TensorView values_, grads_;
  DType master_dtype_ = DType::kF32;
};

// Which array of the state.
enum class StateKind { kMaster, kM, kV, kBorn };

// The whole array of one segment, gathered on every rank from the shards that own its pieces: the
// common step of checkpoints and of topology or phase changes. Host memory, the segment's count of
// elements in the master's dtype. Synchronises `stream`. Collective over `communicator`, whose rank
// is the shard; with one shard there is no traffic.
std::vector<std::byte> GatherSegment(const FlatBuffer& buffer, int segment, StateKind kind,
                                     Communicator& communicator, Stream& stream);
// The inverse, without traffic: every rank is given the whole array and keeps the pieces it owns.
// Scattering the master also writes the segment's values, all of them on every rank, rounded to
// their dtype. Synchronises `stream`.
void ScatterSegment(FlatBuffer& buffer, int segment, StateKind kind,
                    std::span<const std::byte> whole, Stream& stream);

}  // namespace filigree
