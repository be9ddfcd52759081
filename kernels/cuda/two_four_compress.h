// 2:4 weights into cuSPARSELt's compressed form, some ten times faster than cuSPARSELt does it: of
// a mask that stays as it is, places never change, and only values have to be put where the form
// has them.
//
// Where that is the library keeps to itself. It is learnt, once a shape, from what the library
// makes of weights whose values say where they are, and it is taken only if it follows a rule: what
// lies in a tile lies alike in all tiles.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/two_four_side.h"

namespace filigree {

class CompressedPlaces {
 public:
  // Compresses a weight [out, in] into `words`, both on the device, as the library does.
  using Library = std::function<void(const void* weight, void* words)>;

  // `bytes` of the compressed form. Waits for the device. nullptr where there is no such rule, or
  // no memory to look for one.
  static std::unique_ptr<CompressedPlaces> Learn(const TwoFourSide& side, size_t bytes,
                                                 const Library& library, CudaDevice& device,
                                                 cudaStream_t stream);

  const TwoFourSide& side() const { return side_; }
  const int32_t* tiles() const { return static_cast<const int32_t*>(tiles_.data()); }
  const int32_t* within() const { return static_cast<const int32_t*>(within_.data()); }

 private:
  explicit CompressedPlaces(const TwoFourSide& side) : side_(side) {}
  const TwoFourSide side_;
  DeviceBuffer tiles_;   // I32: the first word of each tile
  DeviceBuffer within_;  // I32: from there on, of each value of a tile
};

// The mask of a weight: a bit a cell, 16 bits for each 4 x 4 cells, these row by row.
inline size_t MaskBytes(const TwoFourSide& side) { return side.out * side.in / 8; }
// Writes it. False where four cells along the side's depth have not two that are not zero each, so
// that the mask is not known from the values. Waits for the device.
bool MakeMask(const TwoFourSide& side, const void* weight, void* mask, cudaStream_t stream);

// Puts the weight's values into `words`, where the library has compressed one of that mask before.
void PutValues(const CompressedPlaces& places, const void* weight, const void* mask, void* words,
               cudaStream_t stream);

// Whether it puts them so that `words`, the library's work on the same weight, come out. Waits for
// the device.
bool PutsAsLibrary(const CompressedPlaces& places, const void* weight, const void* mask,
                   const void* words, size_t bytes, cudaStream_t stream);

}  // namespace filigree
