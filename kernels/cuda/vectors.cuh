// 16-byte accesses: kVec consecutive elements of a row in registers, raw as loaded or as fp32.
//
// Kernels are written once for kVec = 8 (eight bf16, one 16-byte access) and kVec = 1, for views
// whose widths or strides do not allow the other. A raw pack takes half the registers of its
// values, so kernels load several packs before they convert the first.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace filigree {

using bf16 = __nv_bfloat16;

template <int kVec>
struct Bf16Pack;
template <>
struct Bf16Pack<8> {
  uint4 raw;
};
template <>
struct Bf16Pack<1> {
  bf16 raw;
};

template <int kVec>
__device__ __forceinline__ Bf16Pack<kVec> Load(const bf16* from) {
  return *reinterpret_cast<const Bf16Pack<kVec>*>(from);
}

template <int kVec>
__device__ __forceinline__ void Store(bf16* to, const Bf16Pack<kVec>& pack) {
  *reinterpret_cast<Bf16Pack<kVec>*>(to) = pack;
}

// The two bf16 of a word, the lower one first.
__device__ __forceinline__ float LowOf(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float HighOf(uint32_t word) {
  return __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ uint32_t WordOf(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ void Unpack(const Bf16Pack<8>& pack, float (&values)[8]) {
  values[0] = LowOf(pack.raw.x), values[1] = HighOf(pack.raw.x);
  values[2] = LowOf(pack.raw.y), values[3] = HighOf(pack.raw.y);
  values[4] = LowOf(pack.raw.z), values[5] = HighOf(pack.raw.z);
  values[6] = LowOf(pack.raw.w), values[7] = HighOf(pack.raw.w);
}
__device__ __forceinline__ void Unpack(const Bf16Pack<1>& pack, float (&values)[1]) {
  values[0] = __bfloat162float(pack.raw);
}

__device__ __forceinline__ Bf16Pack<8> Rounded(const float (&values)[8]) {
  return {make_uint4(WordOf(values[0], values[1]), WordOf(values[2], values[3]),
                     WordOf(values[4], values[5]), WordOf(values[6], values[7]))};
}
__device__ __forceinline__ Bf16Pack<1> Rounded(const float (&values)[1]) {
  return {__float2bfloat16_rn(values[0])};
}

// Gradients are F32 or BF16; either way kVec of them pass through fp32.
__device__ __forceinline__ void LoadValues(const bf16* from, float (&values)[8]) {
  Unpack(Load<8>(from), values);
}
__device__ __forceinline__ void LoadValues(const bf16* from, float (&values)[1]) {
  Unpack(Load<1>(from), values);
}
__device__ __forceinline__ void LoadValues(const float* from, float (&values)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
  values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
}
__device__ __forceinline__ void LoadValues(const float* from, float (&values)[1]) {
  values[0] = *from;
}
__device__ __forceinline__ void StoreValues(bf16* to, const float (&values)[8]) {
  Store<8>(to, Rounded(values));
}
__device__ __forceinline__ void StoreValues(bf16* to, const float (&values)[1]) {
  Store<1>(to, Rounded(values));
}
__device__ __forceinline__ void StoreValues(float* to, const float (&values)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}
__device__ __forceinline__ void StoreValues(float* to, const float (&values)[1]) {
  *to = values[0];
}

}  // namespace filigree
