#include "kernels/cuda/sddmm_units.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/sddmm_lines.h"

namespace filigree {
namespace {

// The chunks of B that one A slice meets, and where their gradients lie.
struct Chunk {
  int b_chunk;
  int gradient_chunk;
};

std::vector<Chunk> ChunksOf(const BsrPattern& pattern, const std::vector<SddmmBlock>& line,
                            bool by_rows) {
  const auto [rows, cols] = pattern.block;
  std::vector<Chunk> chunks;
  for (const SddmmBlock& block : line) {
    const auto first = static_cast<int>(pattern.ValueBegin(block.index) / kChunk);
    for (int c = 0; c < (by_rows ? cols : rows) / kChunk; ++c) {
      if (by_rows) {
        chunks.push_back({block.col * (cols / kChunk) + c, first + c});
      } else {
        chunks.push_back({block.row * (rows / kChunk) + c, first + c * cols});
      }
    }
  }
  return chunks;
}

// Deals the four slices of every step to the warpgroups that read an A slice: the units of one list
// lie one after the other, and with slices of 128 both warpgroups have columns of their own.
void ShareColumnSums(int a_width, std::vector<SddmmUnit>* units) {
  constexpr int kSlices = 4;
  for (size_t begin = 0, end = 0; begin < units->size(); begin = end) {
    std::vector<std::pair<SddmmUnit*, int>> takers;  // and their warpgroup
    while (end < units->size() && (*units)[end].a_chunk == (*units)[begin].a_chunk) {
      SddmmUnit* unit = &(*units)[end++];
      for (int group = 0; group < (a_width == 128 ? 1 : 2); ++group) {
        if (group == 0 || unit->chunk_count[group] > 0) takers.push_back({unit, group});
      }
    }
    // Two of three readers take one slice each, the third two.
    const int readers = std::min(kSlices, static_cast<int>(takers.size()));
    int first = 0;
    for (int i = 0; i < readers; ++i) {
      const auto [unit, group] = takers[i];
      const int count = readers == 3 ? (i == 0 ? 2 : 1) : kSlices / readers;
      for (int g = group; g < (a_width == 128 ? 2 : group + 1); ++g) {
        unit->sum_first[g] = first;
        unit->sum_count[g] = count;
      }
      first += count;
    }
  }
}

// The units of line number `line`; of an empty one, one unit of sums alone or none.
void AddUnits(const BsrPattern& pattern, const std::vector<SddmmBlock>& blocks, int line,
              bool by_rows, bool column_sums, std::vector<SddmmUnit>* units) {
  const int a_width = by_rows ? pattern.block.rows : pattern.block.cols;
  const int max_chunks = a_width == 128 ? 4 : 8;
  const std::vector<Chunk> list = ChunksOf(pattern, blocks, by_rows);
  const int chunks = static_cast<int>(list.size());
  const int parts = std::max(column_sums ? 1 : 0, (chunks + max_chunks - 1) / max_chunks);
  for (int k = 0; k < parts; ++k) {
    int begin = max_chunks * k;
    int end = std::min(begin + max_chunks, chunks);
    if (a_width == 64) {  // tuned on an H100: equal parts, which keep one pace, gain a fifth here
      begin = chunks * k / parts;
      end = chunks * (k + 1) / parts;
    }
    SddmmUnit unit = {};
    unit.by_rows = by_rows ? 1 : 0;
    unit.a_chunk = line * (a_width / kChunk);
    unit.chunk_count[0] = a_width == 128 ? end - begin : (end - begin + 1) / 2;
    unit.chunk_count[1] = end - begin - unit.chunk_count[0];
    for (int c = begin; c < end; ++c) {
      const int offset = c - begin;
      const int slot = offset < unit.chunk_count[0] ? offset : 4 + offset - unit.chunk_count[0];
      unit.b_chunk[slot] = list[c].b_chunk;
      unit.gradient_chunk[slot] = list[c].gradient_chunk;
    }
    units->push_back(unit);
  }
}

std::vector<SddmmUnit> UnitsOf(const BsrPattern& pattern, const SddmmLines& lines, bool by_rows,
                               bool column_sums) {
  std::vector<SddmmUnit> units;
  for (size_t i = 0; i < lines.size(); ++i) {
    AddUnits(pattern, lines[i], static_cast<int>(i), by_rows, column_sums, &units);
  }
  return units;
}

// Lines by rows or by columns, and units across them of what would leave others partly filled.
std::vector<SddmmUnit> MixedUnits(const BsrPattern& pattern, bool by_rows) {
  SddmmLines lines = ListSddmmLines(pattern, by_rows);
  const SddmmLines across =
      MoveRemainders(&lines, by_rows, by_rows ? pattern.block_col_count : pattern.block_row_count,
                     pattern.block.rows == 128 ? 2 : 8);
  std::vector<SddmmUnit> units = UnitsOf(pattern, lines, by_rows, false);
  for (const std::vector<SddmmBlock>& line : across) {
    AddUnits(pattern, line, by_rows ? line[0].col : line[0].row, !by_rows, false, &units);
  }
  return units;
}

// Units of the direction that shares the wider side of a block; of square ones, of that which
// leaves fewer.
std::vector<SddmmUnit> PlainUnits(const BsrPattern& pattern, bool column_sums) {
  const auto [rows, cols] = pattern.block;
  std::vector<SddmmUnit> best;
  for (const bool by_rows : {true, false}) {
    if (by_rows ? rows < cols : cols < rows) continue;
    // Sums on the way are worth more than a unit less.
    if (column_sums && !by_rows) continue;
    std::vector<SddmmUnit> units =
        UnitsOf(pattern, ListSddmmLines(pattern, by_rows), by_rows, column_sums);
    if (best.empty() || units.size() < best.size()) best = std::move(units);
  }
  if (column_sums) ShareColumnSums(rows, &best);
  return best;
}

}  // namespace

std::vector<std::vector<SddmmUnit>> MakeSddmmUnits(const BsrPattern& pattern,
                                                   const SddmmForm& form) {
  const auto [rows, cols] = pattern.block;
  if (rows != cols || form.column_sums) return {PlainUnits(pattern, form.column_sums)};
  // The slices are the wider operand's, which few units share and which is read once if they go
  // together; the chunks the narrower one's, which all units share and which stays in the L2.
  // Measured on an H100 the other way round takes a quarter to a third more time with blocks of
  // 128, and up to a quarter with blocks of 64.
  const bool by_rows = pattern.out_features() >= pattern.in_features();
  if (rows == 128) return {MixedUnits(pattern, by_rows)};
  return {PlainUnits(pattern, false), MixedUnits(pattern, by_rows), MixedUnits(pattern, !by_rows)};
}

}  // namespace filigree
