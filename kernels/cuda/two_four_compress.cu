#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/two_four_compress.h"

namespace filigree {
namespace {

constexpr int kThreads = 256;
// A tile of places: 64 of the width by 16 groups of four along the depth.
constexpr int kTileWidth = 64, kTileGroups = 16;

// Values that say where they are. The first two of every four cells are there, of group g (counted
// along the depth, then along the width) with 13 bits of g and, in the sign, which of the two it
// is. A second weight has the bits above. Numbers in both, and in ranges apart, as places of cells
// (bits 0100 a group here, the same in both) are not.
constexpr int kCodeBits = 13;
constexpr uint32_t kCodeMask = (1u << kCodeBits) - 1, kRangeMask = 0x6000, kSecond = 0x8000;
constexpr uint32_t kLowRange = 0x4000, kHighRange = 0x2000;

struct Shape {
  int64_t out, in;
  bool transposed;
  __host__ __device__ int64_t groups() const { return (transposed ? out : in) / 4; }
  __host__ __device__ int64_t width() const { return transposed ? in : out; }
};

Shape ShapeOf(const TwoFourSide& side) { return {side.out, side.in, side.transposed}; }

unsigned BlocksFor(int64_t threads) { return static_cast<unsigned>(CeilDiv(threads, kThreads)); }

__device__ int64_t ThreadIndex() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

__global__ void __launch_bounds__(kThreads)
    CodeKernel(Shape shape, uint16_t* weight, int shift, uint32_t range) {
  const int64_t i = ThreadIndex();
  if (i >= shape.out * shape.in) return;
  const int64_t row = i / shape.in, column = i % shape.in;
  const int64_t depth = shape.transposed ? row : column, w = shape.transposed ? column : row;
  const int64_t group = w * shape.groups() + depth / 4;
  const uint32_t code = range | (static_cast<uint32_t>(group >> shift) & kCodeMask);
  const uint32_t which = depth % 4 == 1 ? kSecond : 0;
  weight[i] = depth % 4 < 2 ? static_cast<uint16_t>(code | which) : uint16_t{0};
}

// places[2 group + which] = the word that holds it.
__global__ void __launch_bounds__(kThreads)
    FindKernel(const uint16_t* low, const uint16_t* high, int64_t words, int64_t groups,
               int32_t* places) {
  const int64_t i = ThreadIndex();
  if (i >= words) return;
  const uint32_t a = low[i], b = high[i];
  if ((a & kRangeMask) != kLowRange || (b & kRangeMask) != kHighRange) return;
  const int64_t group = int64_t{b & kCodeMask} << kCodeBits | (a & kCodeMask);
  if (group < groups) places[2 * group + (a >= kSecond ? 1 : 0)] = static_cast<int32_t>(i);
}

__device__ int64_t TileOf(const Shape& shape, int64_t w, int64_t g) {
  return w / kTileWidth * (shape.groups() / kTileGroups) + g / kTileGroups;
}
__device__ int64_t InTile(int64_t w, int64_t g) {
  return w % kTileWidth * kTileGroups + g % kTileGroups;
}

// A thread a group: the first of a tile writes the tile's, those of the first tile what lies
// within.
__global__ void __launch_bounds__(kThreads)
    SplitKernel(Shape shape, const int32_t* places, int32_t* tiles, int32_t* within) {
  const int64_t i = ThreadIndex();
  if (i >= shape.width() * shape.groups()) return;
  const int64_t w = i / shape.groups(), g = i % shape.groups();
  if (InTile(w, g) == 0) tiles[TileOf(shape, w, g)] = places[2 * i];
  if (TileOf(shape, w, g) != 0) return;
  for (int e = 0; e < 2; ++e) within[2 * InTile(w, g) + e] = places[2 * i + e] - places[0];
}

__global__ void __launch_bounds__(kThreads)
    CheckPlacesKernel(Shape shape, const int32_t* places, const int32_t* tiles,
                      const int32_t* within, int* wrong) {
  const int64_t i = ThreadIndex();
  if (i >= shape.width() * shape.groups()) return;
  const int64_t w = i / shape.groups(), g = i % shape.groups();
  for (int e = 0; e < 2; ++e) {
    const int32_t place = places[2 * i + e];
    if (place < 0 || place != tiles[TileOf(shape, w, g)] + within[2 * InTile(w, g) + e]) *wrong = 1;
  }
}

// 4 x 4 cells.
struct Square {
  uint16_t cells[4][4];
};

__device__ Square LoadSquare(const Shape& shape, const uint16_t* weight, int64_t row,
                             int64_t column) {
  Square square;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    *reinterpret_cast<uint2*>(square.cells[r]) =
        *reinterpret_cast<const uint2*>(weight + (row + r) * shape.in + column);
  }
  return square;
}

__device__ constexpr uint32_t BitOf(int row, int column) { return 1u << (4 * row + column); }

__global__ void __launch_bounds__(kThreads)
    MaskKernel(Shape shape, const uint16_t* weight, uint16_t* masks, int* incomplete) {
  const int64_t i = ThreadIndex();
  if (i >= shape.out / 4 * (shape.in / 4)) return;
  const Square square = LoadSquare(shape, weight, i / (shape.in / 4) * 4, i % (shape.in / 4) * 4);
  uint32_t mask = 0;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) mask |= (square.cells[r][c] & 0x7fff) != 0 ? BitOf(r, c) : 0;
  }
#pragma unroll
  for (int line = 0; line < 4; ++line) {
    const uint32_t of_line = shape.transposed ? 0x1111u << line : 0xfu << (4 * line);
    if (__popc(mask & of_line) != 2) *incomplete = 1;
  }
  masks[i] = static_cast<uint16_t>(mask);
}

// A thread a square: four groups.
template <bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    PutKernel(Shape shape, const uint16_t* weight, const uint16_t* masks, const int32_t* tiles,
              const int32_t* within, uint16_t* words) {
  const int64_t i = ThreadIndex();
  if (i >= shape.out / 4 * (shape.in / 4)) return;
  const int64_t row = i / (shape.in / 4) * 4, column = i % (shape.in / 4) * 4;
  const Square square = LoadSquare(shape, weight, row, column);
  const uint32_t mask = masks[i];
  const int64_t w = kTransposed ? column : row, g = (kTransposed ? row : column) / 4;
  // A square does not leave its tile.
  uint16_t* tile = words + tiles[TileOf(shape, w, g)];
  const int2* places = reinterpret_cast<const int2*>(within) + InTile(w, g);
#pragma unroll
  for (int line = 0; line < 4; ++line) {
    const int2 place = places[line * kTileGroups];
    uint16_t first = 0, second = 0;
    bool found = false;
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      const int r = kTransposed ? d : line, c = kTransposed ? line : d;
      if ((mask & BitOf(r, c)) == 0) continue;
      if (found) second = square.cells[r][c];
      if (!found) first = square.cells[r][c];
      found = true;
    }
    tile[place.x] = first;
    tile[place.y] = second;
  }
}

__global__ void __launch_bounds__(kThreads)
    CompareKernel(const uint16_t* a, const uint16_t* b, int64_t words, int* differ) {
  const int64_t i = ThreadIndex();
  if (i < words && a[i] != b[i]) *differ = 1;
}

// Device memory for a while; empty where there is none.
class Passing {
 public:
  explicit Passing(size_t bytes) {
    if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
    cudaGetLastError();
    data_ = nullptr;
  }
  ~Passing() { CUDA_CHECK(cudaFree(data_)); }
  Passing(const Passing&) = delete;
  Passing& operator=(const Passing&) = delete;
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }
  bool empty() const { return data_ == nullptr; }

 private:
  void* data_ = nullptr;
};

// A word that kernels set where something is not as it should be.
template <typename Fn>
bool StaysZero(const Fn& submit, cudaStream_t stream) {
  const Passing flag(sizeof(int));
  if (flag.empty()) return false;
  CUDA_CHECK(cudaMemsetAsync(flag.As<int>(), 0, sizeof(int), stream));
  submit(flag.As<int>());
  CUDA_CHECK(cudaGetLastError());
  int value = 0;
  CUDA_CHECK(cudaMemcpyAsync(&value, flag.As<int>(), sizeof(int), cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return value == 0;
}

}  // namespace

std::unique_ptr<CompressedPlaces> CompressedPlaces::Learn(const TwoFourSide& side, size_t bytes,
                                                          const Library& library,
                                                          CudaDevice& device, cudaStream_t stream) {
  const Shape shape = ShapeOf(side);
  const int64_t cells = side.out * side.in, groups = shape.width() * shape.groups();
  if (shape.width() % kTileWidth != 0 || shape.groups() % kTileGroups != 0) return nullptr;
  if (groups > int64_t{1} << (2 * kCodeBits)) return nullptr;
  const Passing weight(cells * sizeof(uint16_t)), low(bytes), high(bytes),
      places(2 * groups * sizeof(int32_t));
  if (weight.empty() || low.empty() || high.empty() || places.empty()) return nullptr;
  const auto compress_codes = [&](int shift, uint32_t range, const Passing& coded) {
    CodeKernel<<<BlocksFor(cells), kThreads, 0, stream>>>(shape, weight.As<uint16_t>(), shift,
                                                          range);
    CUDA_CHECK(cudaGetLastError());
    library(weight.As<void>(), coded.As<void>());
  };
  compress_codes(0, kLowRange, low);
  compress_codes(kCodeBits, kHighRange, high);
  CUDA_CHECK(cudaMemsetAsync(places.As<void>(), 0xff, 2 * groups * sizeof(int32_t), stream));
  const auto words = static_cast<int64_t>(bytes / sizeof(uint16_t));
  FindKernel<<<BlocksFor(words), kThreads, 0, stream>>>(low.As<uint16_t>(), high.As<uint16_t>(),
                                                        words, groups, places.As<int32_t>());
  CUDA_CHECK(cudaGetLastError());
  std::unique_ptr<CompressedPlaces> learnt(new CompressedPlaces(side));
  constexpr int kInTile = kTileWidth * kTileGroups;
  learnt->tiles_ = device.Allocate(groups / kInTile * sizeof(int32_t), "layouts");
  learnt->within_ = device.Allocate(2 * kInTile * sizeof(int32_t), "layouts");
  auto* tiles = static_cast<int32_t*>(learnt->tiles_.data());
  auto* within = static_cast<int32_t*>(learnt->within_.data());
  SplitKernel<<<BlocksFor(groups), kThreads, 0, stream>>>(shape, places.As<int32_t>(), tiles,
                                                          within);
  const bool right = StaysZero(
      [&](int* wrong) {
        CheckPlacesKernel<<<BlocksFor(groups), kThreads, 0, stream>>>(shape, places.As<int32_t>(),
                                                                      tiles, within, wrong);
      },
      stream);
  return right ? std::move(learnt) : nullptr;
}

bool MakeMask(const TwoFourSide& side, const void* weight, void* mask, cudaStream_t stream) {
  const Shape shape = ShapeOf(side);
  return StaysZero(
      [&](int* incomplete) {
        MaskKernel<<<BlocksFor(side.out * side.in / 16), kThreads, 0, stream>>>(
            shape, static_cast<const uint16_t*>(weight), static_cast<uint16_t*>(mask), incomplete);
      },
      stream);
}

void PutValues(const CompressedPlaces& places, const void* weight, const void* mask, void* words,
               cudaStream_t stream) {
  const Shape shape = ShapeOf(places.side());
  const auto kernel = shape.transposed ? PutKernel<true> : PutKernel<false>;
  kernel<<<BlocksFor(shape.out * shape.in / 16), kThreads, 0, stream>>>(
      shape, static_cast<const uint16_t*>(weight), static_cast<const uint16_t*>(mask),
      places.tiles(), places.within(), static_cast<uint16_t*>(words));
  CUDA_CHECK(cudaGetLastError());
}

bool PutsAsLibrary(const CompressedPlaces& places, const void* weight, const void* mask,
                   const void* words, size_t bytes, cudaStream_t stream) {
  const Passing ours(bytes);
  if (ours.empty()) return false;
  // Places of cells stay; each value's is overwritten.
  CUDA_CHECK(cudaMemcpyAsync(ours.As<void>(), words, bytes, cudaMemcpyDeviceToDevice, stream));
  PutValues(places, weight, mask, ours.As<void>(), stream);
  const auto count = static_cast<int64_t>(bytes / sizeof(uint16_t));
  return StaysZero(
      [&](int* differ) {
        CompareKernel<<<BlocksFor(count), kThreads, 0, stream>>>(
            ours.As<uint16_t>(), static_cast<const uint16_t*>(words), count, differ);
      },
      stream);
}

}  // namespace filigree
