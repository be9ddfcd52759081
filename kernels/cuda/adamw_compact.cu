// AdamW on BF16 weights and moments, and on 8-bit moments: one pass over the state.
//
// A warp takes a block of 256 elements, which is what shares the scales of codes, eight neighbours
// a lane. A code is found in eight steps down a tree of midpoints in shared memory, whose upper
// levels lie in banks of their own.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/adamw_compact.h"
#include "kernels/cuda/adamw_factors.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/moment_codes.cuh"
#include "kernels/cuda/stochastic_rounding.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlock = static_cast<int>(kQuantizationBlock);
static_assert(kBlock == 32 * 8);
// Blocks of threads that one multiprocessor holds at once, of an H100: each loads the tables once.
constexpr int64_t kResidentBlocks = 132 * 4;

// Eight neighbours, of which the first `count` exist; the others read as zero and are not written.
// `whole`: all exist, and 16-byte accesses are legal.
template <typename T>
__device__ __forceinline__ void LoadEight(const T* from, int count, bool whole, float (&to)[8]) {
  if (whole) return LoadValues(from, to);
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
}
__device__ __forceinline__ void StoreEight(float* to, int count, bool whole,
                                           const float (&values)[8]) {
  if (whole) return StoreValues(to, values);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = values[i];
  }
}
__device__ __forceinline__ void StoreEight(bf16* to, int count, bool whole,
                                           const Bf16Pack<8>& pack) {
  if (whole) return Store<8>(to, pack);
  const uint32_t words[4] = {pack.raw.x, pack.raw.y, pack.raw.z, pack.raw.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto half = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
    if (i < count) reinterpret_cast<uint16_t*>(to)[i] = half;
  }
}
__device__ __forceinline__ uint2 LoadCodes(const uint8_t* from, int count, bool whole) {
  if (whole) return *reinterpret_cast<const uint2*>(from);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) words[i / 4] |= static_cast<uint32_t>(from[i]) << (8 * (i % 4));
  }
  return make_uint2(words[0], words[1]);
}
__device__ __forceinline__ void StoreCodes(uint8_t* to, int count, bool whole, uint2 codes) {
  if (whole) {
    *reinterpret_cast<uint2*>(to) = codes;
    return;
  }
  const uint32_t words[2] = {codes.x, codes.y};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
  }
}

// RoundedRange for kernels: a warp's block lies in one of them.
constexpr int kMaxRanges = 96;
struct RoundedRanges {
  int count;
  int64_t begin[kMaxRanges];
  RoundingKey keys[kMaxRanges];
};
// A key, and what the bits of the lane's eight elements are drawn for.
struct Draw {
  RoundingKey key;
  int64_t group;
};

// The range that element i belongs to.
__device__ __forceinline__ Draw DrawFor(const RoundedRanges& ranges, int64_t block_begin,
                                        int64_t lane_begin) {
  int at = 0;
#pragma unroll
  for (int step = 64; step > 0; step /= 2) {
    if (at + step < ranges.count && ranges.begin[at + step] <= block_begin) at += step;
  }
  const RoundingKey key = ranges.keys[at];
  return {key, (key.first + lane_begin - ranges.begin[at]) / 8};
}
static_assert(kMaxRanges <= 128);

// Moments as BF16.
struct HalfMoment {
  bf16* data;
  static constexpr bool kCodes = false;
};
// Moments as codes and scales.
struct CodedMoment {
  uint8_t* codes;
  float* scales;
  static constexpr bool kCodes = true;
};

struct Place {
  int64_t begin;  // of the lane's eight
  int64_t block;
  int count;
  bool whole;
};

__device__ __forceinline__ void Read(const HalfMoment& moment, const QuantizationTables&,
                                     const Place& at, float (&values)[8]) {
  LoadEight(moment.data + at.begin, at.count, at.whole, values);
}
__device__ __forceinline__ void Read(const CodedMoment& moment, const QuantizationTables& tables,
                                     const Place& at, float (&values)[8]) {
  const uint2 codes = LoadCodes(moment.codes + at.begin, at.count, at.whole);
  const float scale = moment.scales[at.block];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t code = ((i < 4 ? codes.x : codes.y) >> (8 * (i % 4))) & 0xffu;
    values[i] = i < at.count ? tables.entries[code] * scale : 0.0f;
  }
}

__device__ __forceinline__ void Write(const HalfMoment& moment, const QuantizationTables&,
                                      const Place& at, const Draw& draw, RoundedNumber number,
                                      const float (&values)[8]) {
  StoreEight(moment.data + at.begin, at.count, at.whole,
             RoundStochastically(values, draw.key, number, draw.group));
}
__device__ __forceinline__ void Write(const CodedMoment& moment, const QuantizationTables& tables,
                                      const Place& at, const Draw&, RoundedNumber,
                                      const float (&values)[8]) {
  const float scale = ScaleOfWarp(values);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i / 4] |= CodeOf(tables, values[i], scale) << (8 * (i % 4));
  StoreCodes(moment.codes + at.begin, at.count, at.whole, make_uint2(words[0], words[1]));
  if (threadIdx.x % 32 == 0) moment.scales[at.block] = scale;
}

template <typename Grad, typename Moment>
struct State {
  bf16* values;
  float* master;  // nullptr: the values are the weights
  const Grad* grads;
  Moment m, v;
  const float* born;  // or nullptr
  bool aligned;
};

template <typename Grad, typename Moment, bool kMaster, bool kAged>
__device__ __forceinline__ void Update(const State<Grad, Moment>& state,
                                       const QuantizationTables* tables, const Place& at,
                                       float scale, const AdamWFactors& factors,
                                       const RoundedRanges& ranges) {
  float g[8], w[8], m[8], v[8], born[8];
  LoadEight(state.grads + at.begin, at.count, at.whole, g);
  if constexpr (kMaster) {
    LoadEight(state.master + at.begin, at.count, at.whole, w);
  } else {
    LoadEight(state.values + at.begin, at.count, at.whole, w);
  }
  Read(state.m, tables[0], at, m);
  Read(state.v, tables[1], at, v);
  if constexpr (kAged) LoadEight(state.born + at.begin, at.count, at.whole, born);
  const Draw draw = DrawFor(ranges, at.block * kBlock, at.begin);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    AdamWFactors f = factors;
    if constexpr (kAged) f = AtAge(factors, born[i]);
    UpdateElement(f, g[i] * scale, &w[i], &m[i], &v[i]);
  }
  if constexpr (kMaster) {
    StoreEight(state.master + at.begin, at.count, at.whole, w);
    StoreEight(state.values + at.begin, at.count, at.whole, Rounded(w));
  } else {
    StoreEight(state.values + at.begin, at.count, at.whole,
               RoundStochastically(w, draw.key, RoundedNumber::kWeight, draw.group));
  }
  Write(state.m, tables[0], at, draw, RoundedNumber::kM, m);
  Write(state.v, tables[1], at, draw, RoundedNumber::kV, v);
}

// Bytes an element with F32 gradients: 12 without a master and with codes, 16 with BF16 moments, 18
// with a master and codes.
template <typename Grad, typename Moment, bool kMaster, bool kAged>
__global__ void __launch_bounds__(kThreads)
    AdamWCompactKernel(State<Grad, Moment> state, int64_t count, const float* scale_pointer,
                       AdamWFactors factors, const __grid_constant__ RoundedRanges ranges) {
  __shared__ QuantizationTables tables[2];
  if constexpr (Moment::kCodes) {
    static_assert(kThreads == 256);
    for (int map = 0; map < 2; ++map) LoadTables(static_cast<QuantizationMap>(map), &tables[map]);
    __syncthreads();
  }
  const float scale = __ldg(scale_pointer);
  if (!isfinite(scale)) return;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  for (int64_t block = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; block < blocks;
       block += int64_t{gridDim.x} * kWarps) {
    const int64_t begin = block * kBlock + threadIdx.x % 32 * 8;
    const int64_t left = count - begin;
    const int exist = left >= 8 ? 8 : left > 0 ? static_cast<int>(left) : 0;
    const Place at = {begin, block, exist, state.aligned && exist == 8};
    Update<Grad, Moment, kMaster, kAged>(state, tables, at, scale, factors, ranges);
  }
}

bool Aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}
bool Aligned(const HalfMoment& moment) { return Aligned(moment.data, 16); }
bool Aligned(const CodedMoment& moment) { return Aligned(moment.codes, 8); }

template <typename Grad, typename Moment>
void Launch(const AdamWArgs& args, Moment m, Moment v, cudaStream_t stream) {
  const int64_t count = args.values.size();
  const bool master = !args.master.empty(), aged = !args.born.empty();
  State<Grad, Moment> state = {AsElements<bf16>(args.values, count, "values"),
                               master ? AsElements<float>(args.master, count, "master") : nullptr,
                               AsElements<Grad>(args.grads, count, "grads"),
                               m,
                               v,
                               aged ? AsElements<float>(args.born, count, "born") : nullptr,
                               false};
  state.aligned = Aligned(state.values, 16) && Aligned(state.master, 16) &&
                  Aligned(state.grads, 16) && Aligned(m) && Aligned(v) && Aligned(state.born, 16);
  const float* scale = AsElements<float>(args.scale, 1, "scale");
  const AdamWFactors factors = FactorsOf(args);
  RoundedRanges ranges = {.count = static_cast<int>(args.rounding.size())};
  for (int i = 0; i < ranges.count; ++i) {
    ranges.begin[i] = args.rounding[i].begin;
    ranges.keys[i] = args.rounding[i].key;
  }
  const int64_t blocks = CeilDiv(count, int64_t{kBlock} * kWarps);
  const auto grid =
      static_cast<unsigned>(Moment::kCodes ? std::min(blocks, kResidentBlocks) : blocks);
  const auto launch = [&](auto* kernel) {
    kernel<<<grid, kThreads, 0, stream>>>(state, count, scale, factors, ranges);
    CUDA_CHECK(cudaGetLastError());
  };
  if (!master) {
    return aged ? launch(AdamWCompactKernel<Grad, Moment, false, true>)
                : launch(AdamWCompactKernel<Grad, Moment, false, false>);
  }
  if constexpr (Moment::kCodes) {
    aged ? launch(AdamWCompactKernel<Grad, Moment, true, true>)
         : launch(AdamWCompactKernel<Grad, Moment, true, false>);
  }
}

template <typename Grad>
void LaunchForMoments(const AdamWArgs& args, cudaStream_t stream) {
  const int64_t count = args.values.size();
  if (args.m.dtype() == DType::kU8) {
    const int64_t blocks = CeilDiv(count, int64_t{kBlock});
    const CodedMoment m = {AsElements<uint8_t>(args.m, count, "m"),
                           AsElements<float>(args.m_scale, blocks, "m_scale")};
    const CodedMoment v = {AsElements<uint8_t>(args.v, count, "v"),
                           AsElements<float>(args.v_scale, blocks, "v_scale")};
    return Launch<Grad>(args, m, v, stream);
  }
  Launch<Grad>(args, HalfMoment{AsElements<bf16>(args.m, count, "m")},
               HalfMoment{AsElements<bf16>(args.v, count, "v")}, stream);
}

// The update of the elements of some ranges, [first, last): of weights that are their own master,
// beside whole moments, since nothing else is rounded in several ranges.
AdamWArgs Part(const AdamWArgs& args, int64_t first, int64_t last) {
  CHECK(args.master.empty() && args.m_scale.empty());
  const auto total = static_cast<int64_t>(args.rounding.size());
  const int64_t begin = args.rounding[first].begin;
  const int64_t end = last < total ? args.rounding[last].begin : args.values.size();
  const auto cut = [&](auto view) { return view.empty() ? view : view.Range(begin, end - begin); };
  AdamWArgs part = args;
  part.values = cut(args.values);
  part.grads = cut(args.grads);
  part.m = cut(args.m);
  part.v = cut(args.v);
  part.born = cut(args.born);
  part.rounding.assign(args.rounding.begin() + first, args.rounding.begin() + last);
  for (RoundedRange& range : part.rounding) range.begin -= begin;
  return part;
}

}  // namespace

void LaunchAdamWCompact(const AdamWArgs& args, cudaStream_t stream) {
  CheckRounding(args);
  const auto ranges = static_cast<int64_t>(args.rounding.size());
  if (ranges > kMaxRanges) {
    LaunchAdamWCompact(Part(args, 0, kMaxRanges), stream);
    return LaunchAdamWCompact(Part(args, kMaxRanges, ranges), stream);
  }
  if (args.grads.dtype() == DType::kF32) {
    LaunchForMoments<float>(args, stream);
  } else {
    LaunchForMoments<bf16>(args, stream);
  }
}

}  // namespace filigree
