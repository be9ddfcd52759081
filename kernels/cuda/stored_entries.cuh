// Stored values and the dense weights that they are cells of, as the scatter and the gather walk
// them: row by row of the weight, several weights in a launch.
//
// Unstructured and n:m layouts are blocked ones with blocks of 1 x 1. In row i of the weight, entry
// e of the row is cell e % width of block e / width of its grid row, stored at
// ((first block + e / width) * height + i % height) * width + e % width.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/layout_index.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {

constexpr int kStoredThreads = 256;
// Weights of a launch: blockIdx.y says which. A decoder's groups have at most three.
constexpr int kMaxStoredParts = 4;

template <typename Column, typename Dense, typename Value>
struct StoredPart {
  Index<Column> index;
  Rows<Dense> dense;
  Value* values;
};
template <typename Column, typename Dense, typename Value>
struct StoredParts {
  StoredPart<Column, Dense, Value> part[kMaxStoredParts];
};

// What an entry of a row is: a block of one cell, a cell of a larger one, eight neighbours of one.
enum class StoredEntries { kBlocks, kCells, kVectors };
template <StoredEntries kEntries>
constexpr int kEntryCells = kEntries == StoredEntries::kVectors ? 8 : 1;
// Entries that a thread loads before it uses the first: as many as its registers hold.
template <StoredEntries kEntries>
constexpr int kEntryBatch = kEntries == StoredEntries::kBlocks  ? 8
                            : kEntries == StoredEntries::kCells ? 4
                                                                : 1;

// Rows of a CTA, kRowThreads threads each.
template <int kRowThreads>
constexpr int kCtaRows = kStoredThreads / kRowThreads;

// Calls fn(columns, slots, count) for a thread's entries in blocks [begin, end) of row `row`, a
// batch at a time so that their loads overlap. kRowThreads threads share the row, of which this is
// number `thread`.
template <StoredEntries kEntries, int kRowThreads, typename Column, typename Fn>
__device__ __forceinline__ void ForEntries(const Index<Column>& index, int64_t row, uint32_t begin,
                                           uint32_t end, uint32_t thread, const Fn& fn) {
  constexpr int kBatch = kEntryBatch<kEntries>, kVec = kEntryCells<kEntries>;
  const uint32_t per_block = kEntries == StoredEntries::kBlocks ? 1 : index.width / kVec;
  const int64_t row_inside = kEntries == StoredEntries::kBlocks ? 0 : row % index.height;
  const uint32_t entries = (end - begin) * per_block;
  for (uint32_t first = thread; first < entries; first += kRowThreads * kBatch) {
    int64_t columns[kBatch], slots[kBatch];
    int count = 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const uint32_t e = first + b * kRowThreads;
      if (e >= entries) continue;
      if constexpr (kEntries == StoredEntries::kBlocks) {
        slots[b] = begin + e;
        columns[b] = index.columns[begin + e];
      } else {
        const uint32_t block = begin + e / per_block;
        const int inside = static_cast<int>(e % per_block) * kVec;
        slots[b] = (int64_t{block} * index.height + row_inside) * index.width + inside;
        columns[b] = int64_t{index.columns[block]} * index.width + inside;
      }
      count = b + 1;
    }
    fn(columns, slots, count);
  }
}

// What weights of one launch have in common.
struct StoredForm {
  bool short_columns = false;
  StoredEntries entries = StoredEntries::kBlocks;
  bool aligned_rows = false;  // of the dense weights
  bool accumulate = false;
  bool operator==(const StoredForm&) const = default;
};

// `vectors`: both sides let cells be read eight at a time, if blocks are as wide.
inline StoredForm FormOfWeight(const PreparedLayout* weight, bool vectors, bool aligned_rows,
                               bool accumulate) {
  const SparseLayout& layout = weight->layout();
  StoredForm form = {.short_columns = Prepared(weight).indices().short_columns,
                     .aligned_rows = aligned_rows,
                     .accumulate = accumulate};
  if (layout.block_out() == 1 && layout.block_in() == 1) return form;
  form.entries =
      vectors && layout.block_in() % 8 == 0 ? StoredEntries::kVectors : StoredEntries::kCells;
  return form;
}

// Calls launch(parts, form) with neighbours of one form, as many as a launch takes.
template <typename Args, typename Form, typename Launch>
void ForEachLaunch(std::span<const Args> parts, const Form& form_of, const Launch& launch) {
  for (size_t begin = 0; begin < parts.size();) {
    const StoredForm form = form_of(parts[begin]);
    size_t end = begin + 1;
    while (end < parts.size() && end - begin < kMaxStoredParts && form_of(parts[end]) == form) {
      ++end;
    }
    launch(parts.subspan(begin, end - begin), form);
    begin = end;
  }
}

// The parts as kernels take them.
template <typename Column, typename Dense, typename Value, typename Args>
StoredParts<Column, Dense, Value> DeviceParts(std::span<const Args> parts) {
  StoredParts<Column, Dense, Value> all = {};
  for (size_t i = 0; i < parts.size(); ++i) {
    const SparseLayout& layout = parts[i].weight->layout();
    all.part[i] = {
        IndexOf<Column>(Prepared(parts[i].weight)),
        AsRows<std::remove_const_t<Dense>>(parts[i].dense, layout.out(), layout.in(), "dense"),
        AsElements<std::remove_const_t<Value>>(parts[i].values, layout.stored_count(), "values")};
  }
  return all;
}

// Calls fn with a Column and StoredEntries, as types.
template <typename Fn>
void WithStoredForm(const StoredForm& form, const Fn& fn) {
  using std::integral_constant;
  const auto with_entries = [&](auto column) {
    switch (form.entries) {
      case StoredEntries::kBlocks:
        return fn(column, integral_constant<StoredEntries, StoredEntries::kBlocks>{});
      case StoredEntries::kCells:
        return fn(column, integral_constant<StoredEntries, StoredEntries::kCells>{});
      case StoredEntries::kVectors:
        return fn(column, integral_constant<StoredEntries, StoredEntries::kVectors>{});
    }
  };
  form.short_columns ? with_entries(uint16_t{}) : with_entries(uint32_t{});
}

// Calls fn with the threads of a row, as a type: a warp's or a CTA's.
template <typename Fn>
void WithRowThreads(bool warp_rows, const Fn& fn) {
  warp_rows ? fn(std::integral_constant<int, 32>{})
            : fn(std::integral_constant<int, kStoredThreads>{});
}

// The most entries that a row of these weights has on average.
template <typename Args>
int64_t RowEntries(std::span<const Args> parts, StoredEntries entries) {
  int64_t most = 0;
  for (const Args& part : parts) {
    const SparseLayout& layout = part.weight->layout();
    const int cells = entries == StoredEntries::kVectors ? 8 : 1;
    most = std::max(most, layout.block_count() * layout.block_in() / cells / layout.grid_rows());
  }
  return most;
}

// CTAs for `rows` rows, kRowThreads threads each, of each of the parts.
inline dim3 StoredGrid(int64_t rows, int row_threads, size_t parts) {
  return dim3(static_cast<unsigned>(CeilDiv(rows, int64_t{kStoredThreads / row_threads})),
              static_cast<unsigned>(parts));
}

}  // namespace filigree
