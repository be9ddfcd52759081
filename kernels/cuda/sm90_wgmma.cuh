// wgmma m64nNk16, bf16 operands from shared memory, fp32 accumulators (sm_90a).
//
// An operand lies in shared memory as TMA leaves it with the 128-byte swizzle: atoms of 8 rows x 128
// bytes, 1024-byte aligned. "K-major" operands have the reduction along the 128 bytes, "M/N-major"
// ones (kTransposed) have it down the rows. The two need the same bytes and different descriptors,
// which is how one stored weight block serves the forward product and the input gradient.
//
// Accumulators of a thread: with r = 16 * warp + lane / 4 and c = 2 * (lane % 4), d[4j + i] is row
// r + 8 * (i / 2), column 8j + c + i % 2 of the 64 x N tile.
#pragma once

#include <cstdint>

#include "kernels/cuda/sm90_pipeline.cuh"

namespace filigree::sm90 {

// Bytes between two k16 slices inside an operand: 16 elements along a row, or 16 rows.
inline constexpr int kAdvanceKMajor = 32;
inline constexpr int kAdvanceTransposed = 16 * 128;

// Descriptor of a swizzled operand: start address, leading offset (the distance between chunks of 64
// along M or N; read for M/N-major operands only), stride offset (between groups of 8 rows) = 1024.
__device__ __forceinline__ uint64_t OperandDescriptor(uint32_t address, uint32_t leading_bytes) {
  constexpr uint64_t kStrideOffset = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kStrideOffset | (uint64_t{leading_bytes >> 4} << 16) |
         uint64_t{(address & 0x3FFFF) >> 4};
}

// Descriptor of a K-major operand of 8 columns without a swizzle: 16 bytes of each column lie one
// after the other, the next eight elements of the reduction 128 bytes further.
__device__ __forceinline__ uint64_t PlainDescriptor(uint32_t address) {
  constexpr uint64_t kOffsets = (uint64_t{128 >> 4} << 16) | (uint64_t{128 >> 4} << 32);
  return kOffsets | uint64_t{(address & 0x3FFFF) >> 4};
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d[0 .. N/2) (+)= A * B for N = kColumns; `accumulate` = 0 starts from zero.
template <int kColumns, int kTransposedA, int kTransposedB>
__device__ __forceinline__ void Wgmma(float (&d)[128], uint64_t a, uint64_t b, int accumulate);

// The same for 8 columns of a K-major B.
template <int kTransposedA>
__device__ __forceinline__ void WgmmaEight(float (&d)[4], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3}, %4, %5, p, 1, 1, %7, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposedA));
}

#define FILIGREE_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FILIGREE_D16(i) FILIGREE_D4(i), FILIGREE_D4(i + 4), FILIGREE_D4(i + 8), FILIGREE_D4(i + 12)
#define FILIGREE_D32(i) FILIGREE_D16(i), FILIGREE_D16(i + 16)

#define FILIGREE_WGMMA_N64(TA, TB)                                                                 \
template <>                                                                                        \
__device__ __forceinline__ void Wgmma<64, TA, TB>(float (&d)[128], uint64_t a, uint64_t b,         \
                                                    int accumulate) {                              \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "                                      \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "          \
      "%32, %33, p, 1, 1, " #TA ", " #TB ";\n}\n"                                                  \
      : FILIGREE_D32(0)                                                                            \
      : "l"(a), "l"(b), "r"(accumulate));                                                          \
}

#define FILIGREE_WGMMA_N128(TA, TB)                                                                \
template <>                                                                                        \
__device__ __forceinline__ void Wgmma<128, TA, TB>(float (&d)[128], uint64_t a, uint64_t b,        \
                                                    int accumulate) {                              \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "                                     \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "          \
      "%64, %65, p, 1, 1, " #TA ", " #TB ";\n}\n"                                                  \
      : FILIGREE_D32(0), FILIGREE_D32(32)                                                          \
      : "l"(a), "l"(b), "r"(accumulate));                                                          \
}

#define FILIGREE_WGMMA_N192(TA, TB)                                                                \
template <>                                                                                        \
__device__ __forceinline__ void Wgmma<192, TA, TB>(float (&d)[128], uint64_t a, uint64_t b,        \
                                                    int accumulate) {                              \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "                                     \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "          \
      "%96, %97, p, 1, 1, " #TA ", " #TB ";\n}\n"                                                  \
      : FILIGREE_D32(0), FILIGREE_D32(32), FILIGREE_D32(64)                                        \
      : "l"(a), "l"(b), "r"(accumulate));                                                          \
}

#define FILIGREE_WGMMA_N256(TA, TB)                                                                \
template <>                                                                                        \
__device__ __forceinline__ void Wgmma<256, TA, TB>(float (&d)[128], uint64_t a, uint64_t b,        \
                                                    int accumulate) {                              \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "                                     \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
      "%128, %129, p, 1, 1, " #TA ", " #TB ";\n}\n"                                                \
      : FILIGREE_D32(0), FILIGREE_D32(32), FILIGREE_D32(64), FILIGREE_D32(96)                      \
      : "l"(a), "l"(b), "r"(accumulate));                                                          \
}

FILIGREE_WGMMA_N64(1, 1)
FILIGREE_WGMMA_N128(1, 1)
FILIGREE_WGMMA_N192(1, 1)
FILIGREE_WGMMA_N256(0, 0)
FILIGREE_WGMMA_N256(1, 0)
FILIGREE_WGMMA_N256(1, 1)

#undef FILIGREE_D4
#undef FILIGREE_D16
#undef FILIGREE_D32
#undef FILIGREE_WGMMA_N64
#undef FILIGREE_WGMMA_N128
#undef FILIGREE_WGMMA_N192
#undef FILIGREE_WGMMA_N256

}  // namespace filigree::sm90
