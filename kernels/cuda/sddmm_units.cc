#include "kernels/cuda/sddmm_units.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

// The chunks of B that one A slice meets, and where their gradients lie.
struct Chunk {
  int b_chunk;
  int gradient_chunk;
};

// A stored block: where it lies, and its number in the pattern.
struct Block {
  int row, col, index;
};

// The lines of one direction; a line is the blocks that share an A slice.
using Lines = std::vector<std::vector<Block>>;

Lines ListLines(const BsrPattern& pattern, bool by_rows) {
  Lines lines(by_rows ? pattern.block_row_count : pattern.block_col_count);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      lines[by_rows ? i : pattern.col[p]].push_back({i, pattern.col[p], p});
    }
  }
  return lines;
}

std::vector<Chunk> ChunksOf(const BsrPattern& pattern, const std::vector<Block>& line,
                            bool by_rows) {
  const auto [rows, cols] = pattern.block;
  std::vector<Chunk> chunks;
  for (const Block& block : line) {
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
void AddUnits(const BsrPattern& pattern, const std::vector<Block>& blocks, int line, bool by_rows,
              bool column_sums, std::vector<SddmmUnit>* units) {
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

std::vector<SddmmUnit> UnitsOf(const BsrPattern& pattern, const Lines& lines, bool by_rows,
                               bool column_sums) {
  std::vector<SddmmUnit> units;
  for (size_t i = 0; i < lines.size(); ++i) {
    AddUnits(pattern, lines[i], static_cast<int>(i), by_rows, column_sums, &units);
  }
  return units;
}

// Takes one block out of as many odd lines as meet in the other direction's lines by twos. Returns
// the pairs, grouped by those other lines.
Lines PairOddOnes(Lines* lines, bool by_rows, int other_lines) {
  const auto is_odd = [](const std::vector<Block>& line) { return line.size() % 2 == 1; };
  Lines pairs(other_lines);
  // Other lines with few odd ones first: those with many have others to pair with.
  std::vector<std::vector<int>> odd(other_lines);
  for (size_t i = 0; i < lines->size(); ++i) {
    if (!is_odd((*lines)[i])) continue;
    for (const Block& block : (*lines)[i]) {
      odd[by_rows ? block.col : block.row].push_back(static_cast<int>(i));
    }
  }
  std::vector<int> order(other_lines);
  for (int k = 0; k < other_lines; ++k) order[k] = k;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return odd[a].size() < odd[b].size(); });
  for (const int other : order) {
    std::vector<int> free;
    for (const int line : odd[other]) {
      if (is_odd((*lines)[line])) free.push_back(line);
    }
    for (size_t k = 0; k + 1 < free.size(); k += 2) {
      for (const int line : {free[k], free[k + 1]}) {
        auto& blocks = (*lines)[line];
        const auto found = std::find_if(blocks.begin(), blocks.end(), [&](const Block& block) {
          return (by_rows ? block.col : block.row) == other;
        });
        pairs[other].push_back(*found);
        blocks.erase(found);
      }
    }
  }
  return pairs;
}

// The slices are the wider operand's, which few units share and which is read once if they go
// together; the chunks the narrower one's, which all units share and which stays in the L2.
// Measured on an H100: the other way round takes a quarter to a third more time.
std::vector<SddmmUnit> MakeMixedUnits(const BsrPattern& pattern) {
  const bool by_rows = pattern.out_features() >= pattern.in_features();
  Lines lines = ListLines(pattern, by_rows);
  const Lines pairs =
      PairOddOnes(&lines, by_rows, by_rows ? pattern.block_col_count : pattern.block_row_count);
  std::vector<SddmmUnit> units = UnitsOf(pattern, lines, by_rows, false);
  const std::vector<SddmmUnit> across = UnitsOf(pattern, pairs, !by_rows, false);
  units.insert(units.end(), across.begin(), across.end());
  return units;
}

}  // namespace

std::vector<SddmmUnit> MakeSddmmUnits(const BsrPattern& pattern, const SddmmForm& form) {
  const auto [rows, cols] = pattern.block;
  if (rows == 128 && cols == 128 && !form.column_sums) return MakeMixedUnits(pattern);
  std::vector<SddmmUnit> best;
  bool found = false;
  for (const bool by_rows : {true, false}) {
    // The wider side is the one to share.
    if (by_rows ? rows < cols : cols < rows) continue;
    // Sums on the way are worth more than a unit less.
    if (form.column_sums && !by_rows) continue;
    std::vector<SddmmUnit> units =
        UnitsOf(pattern, ListLines(pattern, by_rows), by_rows, form.column_sums);
    if (found && units.size() >= best.size()) continue;
    best = std::move(units);
    found = true;
  }
  if (form.column_sums) ShareColumnSums(rows, &best);
  return best;
}

double SddmmUnitCost(const SddmmUnit& unit, const BsrPattern& pattern) {
  // Measured on an H100: a step of one chunk or two takes 0.65 of a full one's time.
  constexpr double kLeast = 0.65;
  const int chunks = unit.chunk_count[0] + unit.chunk_count[1];
  if (std::max(pattern.block.rows, pattern.block.cols) == 64) return (1 + chunks) / 9.0;
  return IsSddmmMemoryBound(pattern.stored_count(), pattern.out_features(), pattern.in_features())
             ? 1
             : std::max(kLeast, (2 + chunks) / 6.0);
}

}  // namespace filigree
