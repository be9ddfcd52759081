// Bulk tensor copies (TMA) between global and shared memory, sm_90a.
//
// Coordinates count elements, innermost dimension first. A box that reaches outside the tensor
// reads zeros there (and still counts its whole size in bytes) and writes nothing there.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/sm90_pipeline.cuh"

namespace filigree::sm90 {

// L2 eviction priorities, as 64-bit cache policies made by createpolicy.fractional with fraction 1.
__device__ __forceinline__ uint64_t PolicyEvictLast() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t PolicyEvictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t PolicyEvictNormal() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void TmaLoad3D(void* destination, const CUtensorMap* map,
                                          uint64_t* barrier, uint64_t policy, int c0, int c1,
                                          int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(SharedAddress(destination)),
      "l"(map), "r"(SharedAddress(barrier)), "l"(policy), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ __forceinline__ void TmaLoad2D(void* destination, const CUtensorMap* map,
                                          uint64_t* barrier, uint64_t policy, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(SharedAddress(destination)),
      "l"(map), "r"(SharedAddress(barrier)), "l"(policy), "r"(c0), "r"(c1)
      : "memory");
}

// Brings a box into the L2.
__device__ __forceinline__ void TmaPrefetch3D(const CUtensorMap* map, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map), "r"(c0),
               "r"(c1), "r"(c2)
               : "memory");
}

// The box lands at the same offset in every CTA of `cta_mask`, and counts at each one's barrier.
__device__ __forceinline__ void TmaLoadMulticast3D(void* destination, const CUtensorMap* map,
                                                   uint64_t* barrier, uint16_t cta_mask,
                                                   uint64_t policy, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%5, %6, %7}], [%2], %3, %4;" ::"r"(
          SharedAddress(destination)),
      "l"(map), "r"(SharedAddress(barrier)), "h"(cta_mask), "l"(policy), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ __forceinline__ void TmaStore2D(const CUtensorMap* map, const void* source,
                                           uint64_t policy, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint"
      " [%0, {%3, %4}], [%1], %2;" ::"l"(map),
      "r"(SharedAddress(source)), "l"(policy), "r"(c0), "r"(c1)
      : "memory");
}

__device__ __forceinline__ void TmaStoreCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void TmaStoreWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Orders shared-memory writes by ordinary stores before later reads by the copy engine.
__device__ __forceinline__ void FenceProxyAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace filigree::sm90
