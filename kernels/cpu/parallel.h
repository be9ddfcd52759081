// The CPU backend's threads and scratch memory.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/base/math.h"

namespace filigree {

// Threads that operations use, and OpenMP's loops elsewhere. The default is OMP_NUM_THREADS or else
// the cores that this process may run on. OpenBLAS always runs on one thread: products are split
// before they reach it, so that two pools of threads do not compete for the cores.
void SetCpuThreads(int threads);
int CpuThreads();

// Calls fn(begin, end) for consecutive ranges that cover [0, count), one a thread, with at least
// about `grain` items each. Must not be nested.
template <typename Fn>
void ParallelFor(int64_t count, int64_t grain, const Fn& fn) {
  if (count <= 0) return;
  const int threads = static_cast<int>(std::min<int64_t>(CpuThreads(), CeilDiv(count, grain)));
  if (threads == 1) {
    fn(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t i = omp_get_thread_num(), n = omp_get_num_threads();
    const int64_t begin = count * i / n, end = count * (i + 1) / n;
    if (begin < end) fn(begin, end);
  }
}

// The smallest range of rows worth a thread, for operations on rows of `cols` elements.
inline int64_t RowGrain(int64_t cols) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(cols, 1));
}

// Scratch of the calling thread, aligned to a cache line. Contents survive until the next request
// for the same slot by the same thread; slots that are in use together differ.
enum class ScratchSlot {
  kPanels,      // blocked products: activations by block column
  kMorePanels,  // SDDMM: the other factor
  kWeights,     // blocked products: rearranged blocks
  kTerms,       // blocked products: the terms of an output tile
  kScores,      // attention: a strip of scores
  kScoreGrads,  // attention: its gradient
  kSums,        // partial sums of reductions
  kMoreSums,
  kWideGrad,  // BF16 gradients: what an operation adds, in F32
  kMoreWideGrad,
  kProbabilities,      // distillation: the student's of a token
  kMoreProbabilities,  // and the teacher's
  kCount
};
void* ScratchBytes(ScratchSlot slot, size_t bytes);

template <typename T>
T* Scratch(ScratchSlot slot, int64_t count) {
  return static_cast<T*>(ScratchBytes(slot, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace filigree
