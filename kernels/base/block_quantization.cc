#include "kernels/base/block_quantization.h"

#include <algorithm>
#include <cmath>

namespace filigree {
namespace {

const QuantizationTables& TablesOf(QuantizationMap map) {
  return map == QuantizationMap::kSigned ? kSignedTables : kUnsignedTables;
}

uint8_t CodeOf(const QuantizationTables& tables, float x) {
  int node = 1;
  for (int level = 0; level < 8; ++level) node = 2 * node + (x > tables.tree[node]);
  return static_cast<uint8_t>(node - 256);
}

float ScaleOf(const float* values, int64_t count) {
  const auto [least, most] = std::minmax_element(values, values + count);
  const float scale = *most >= -*least ? *most : *least;
  return std::fabs(scale) < kSmallestScale ? 0.0f : scale;
}

}  // namespace

void QuantizeBlocks(QuantizationMap map, const float* values, int64_t count, uint8_t* codes,
                    float* scales) {
  const QuantizationTables& tables = TablesOf(map);
  for (int64_t begin = 0; begin < count; begin += kQuantizationBlock) {
    const int64_t end = std::min(begin + kQuantizationBlock, count);
    const float scale = ScaleOf(values + begin, end - begin);
    *scales++ = scale;
    for (int64_t i = begin; i < end; ++i) {
      codes[i] = CodeOf(tables, scale == 0 ? 0.0f : values[i] / scale);
    }
  }
}

void DequantizeBlocks(QuantizationMap map, const uint8_t* codes, const float* scales, int64_t count,
                      float* values) {
  const QuantizationTables& tables = TablesOf(map);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = tables.entries[codes[i]] * scales[i / kQuantizationBlock];
  }
}

}  // namespace filigree
