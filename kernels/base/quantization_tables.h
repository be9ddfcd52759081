// The numbers of block_quantization.h, as constants: for both backends. Plain arrays, since device
// code cannot call the operators of std::array.
#pragma once

namespace filigree {

enum class QuantizationMap { kSigned, kUnsigned };

struct QuantizationTables {
  float entries[256];  // by code, ascending
  // The 255 midpoints of neighbours as a search tree: node k, from 1, has children 2k and 2k + 1.
  // From k = 1, eight steps k = 2k + (x > tree[k]) end at 256 + the code of x.
  float tree[256];
};

// The midpoints of entries first .. last below node `node`.
constexpr void BuildQuantizationTree(int first, int last, int node, QuantizationTables* tables) {
  if (first == last) return;
  const int middle = (first + last) / 2;
  const double sum = static_cast<double>(tables->entries[middle]) + tables->entries[middle + 1];
  tables->tree[node] = static_cast<float>(sum / 2);
  BuildQuantizationTree(first, middle, 2 * node, tables);
  BuildQuantizationTree(middle + 1, last, 2 * node + 1, tables);
}

constexpr QuantizationTables MakeQuantizationTables(QuantizationMap map) {
  constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  const bool is_signed = map == QuantizationMap::kSigned;
  QuantizationTables tables = {};
  const int zero = is_signed ? 127 : 0;
  int distance = 0;  // from the entry 0, in codes
  for (int decade = 0; decade < 7; ++decade) {
    const int cells = 1 << (is_signed ? decade : decade + 1);
    for (int cell = 0; cell < cells; ++cell) {
      // The middle of one of the equal cells of [0.1, 1).
      const double entry = kDecades[decade] * (0.1 + 0.9 * (2 * cell + 1) / (2.0 * cells));
      ++distance;
      tables.entries[zero + distance] = static_cast<float>(entry);
      if (is_signed) tables.entries[zero - distance] = static_cast<float>(-entry);
    }
  }
  tables.entries[255] = 1.0f;
  BuildQuantizationTree(0, 255, 1, &tables);
  return tables;
}

inline constexpr QuantizationTables kSignedTables =
    MakeQuantizationTables(QuantizationMap::kSigned);
inline constexpr QuantizationTables kUnsignedTables =
    MakeQuantizationTables(QuantizationMap::kUnsigned);

}  // namespace filigree
