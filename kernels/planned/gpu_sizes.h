// What the CUDA backend holds beside the arrays of a training state, as functions of shapes and of
// the card: `plan` counts it with and without a GPU at hand. Host code, in every build.
//
// Indices and work lists are counted to the byte (but for one choice, see BlockedStepUse). What
// cuDNN, CUDA and NCCL take is theirs to say, when they run: those are estimates, after what H100s
// were seen to hold, and their names say so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/backend.h"

namespace filigree {

// One kind of GPU.
struct GpuCard {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;  // that the driver leaves to programs
};
struct NamedGpuCard {
  std::string_view key;  // as `plan --card` takes it
  GpuCard card;
};
// The first is the one that is assumed where nobody says.
std::span<const NamedGpuCard> GpuCards();
// nullptr: there is none of that key.
const GpuCard* FindGpuCard(std::string_view key);

// Elements of BF16 that make 16 bytes: Device::row_alignment.
inline constexpr int64_t kGpuRowAlignment = 8;

// Workspaces that a backend has from its beginning: for operations of its own, which grows where a
// shape needs more, and cuBLASLt's.
inline constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
inline constexpr int64_t kCublasWorkspaceBytes = int64_t{64} << 20;

// Arrays that share one buffer on the device begin at multiples of this.
inline constexpr int64_t kIndexAlignment = 256;
// A layout's row offsets and columns; of a joined weight there are none.
int64_t GpuIndexBytes(const SparseLayout& layout);

// Fewer tokens fill too little of a tile of 256, and generation, which lengthens its sequence token
// by token, would build a work list for each length: the Hopper kernels leave them to others.
inline constexpr int64_t kHopperMinTokens = 128;
// Whether the Hopper kernels multiply with this layout, given well-aligned operands and enough
// tokens; and, for that, whether weights joined to it gain.
bool HopperServes(const SparseLayout& layout, const GpuCard& card);

// What products with a blocked weight come to hold beside its indices, and their scratch: the work
// lists of the Hopper kernels, with those of a bias's gradient where `bias_sums`, or the transposed
// index of those of other cards and blocks. Factors beside the weight are left out, and the forward
// and transposed lists are those of the smaller of the tiles that the kernels choose from, so that
// what is held may be less.
PreparedLayout::StepUse BlockedStepUse(const SparseLayout& layout, int64_t tokens, bool bias_sums,
                                       const GpuCard& card);

// Of a 2:4 weight [out, in] (Backend::TwoFourBytes): its form for sparse tensor cores and what it is
// made by, and its transpose's. 0 where there are none.
int64_t CompressedBytes(int64_t out, int64_t in, TwoFourKind kind, const GpuCard& card);

// Backend::BlockedFlopCost of the CUDA backend.
double GpuBlockedFlopCost(const SparseLayout& layout);

// ------------------------------------------------------------------------------------- estimates

// Micro-batches of `sequences` x `seq_len`.
struct AttentionSize {
  int64_t sequences = 0, seq_len = 0, heads = 0, kv_heads = 0, head_size = 0;
};
// The most scratch of the plans that cuDNN (9) tries for attention's backward pass.
int64_t EstimateAttentionScratch(const AttentionSize& size, bool deterministic);

// A CUDA context, the code of kernels and libraries, and what NCCL holds where there are `ranks`.
int64_t EstimateContext(int ranks);

}  // namespace filigree
