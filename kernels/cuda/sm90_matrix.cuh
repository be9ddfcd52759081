// Four 8x8 matrices of 16 bits between a warp's registers and shared memory, transposed (sm_90a).
//
// Lane l has the address of row l % 8 of matrix l / 8 in shared memory, 16 bytes; r[m] is elements
// 2 * (l % 4) and + 1 of row l / 4 of matrix m's transpose.
#pragma once

#include <cstdint>

namespace filigree::sm90 {

__device__ __forceinline__ void StoreMatrixTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
__device__ __forceinline__ void LoadMatrixTransposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace filigree::sm90
