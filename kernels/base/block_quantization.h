// Eight bits a value for the optimizer's moments: blockwise dynamic quantisation (Dettmers et al.,
// "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861).
//
// A block of 256 values shares one scale, its extreme value; a value is the entry of a fixed map of
// 256 numbers in [-1, 1] (signed) or [0, 1] (unsigned) that is nearest to value / scale. The map is
// the paper's dynamic tree: decade e of seven, from 1e-7 up to 1, is cut into 2^e (unsigned:
// 2^(e+1)) equal cells whose middles are entries; 0 and 1 are entries too, -1 is none.
//
// One thing differs from the paper, whose scale is the absolute maximum: ours carries the sign of
// the extreme value, which therefore always is entry 1, and exact. Quantising what was dequantised
// then returns the same codes and scale, so a checkpoint of plain numbers resumes bit for bit.
// Scales below 2^-100 count as zero: products with the map's entries stay normal numbers.
#pragma once

#include <cstdint>

#include "kernels/base/quantization_tables.h"

namespace filigree {

inline constexpr int64_t kQuantizationBlock = 256;   // values that share a scale
inline constexpr int64_t kSmallestQuantized = 4096;  // shorter arrays are kept whole, as published
inline constexpr float kSmallestScale = 0x1p-100f;

// Of `count` values whose blocks begin at the first: `codes` [count], `scales`
// [ceil(count / kQuantizationBlock)].
void QuantizeBlocks(QuantizationMap map, const float* values, int64_t count, uint8_t* codes,
                    float* scales);
void DequantizeBlocks(QuantizationMap map, const uint8_t* codes, const float* scales, int64_t count,
                      float* values);

}  // namespace filigree
