#include "kernels/cuda/sddmm_lines.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

namespace filigree {
namespace {

int LineOf(const SddmmBlock& block, bool by_rows) { return by_rows ? block.row : block.col; }

// Which lines give one of their blocks to which lines of the other direction, of which each takes
// some whole units of `capacity` blocks.
class Remainders {
 public:
  // Lines with at most `most` blocks beyond a multiple of `capacity` give those away, all others
  // nothing.
  Remainders(const SddmmLines& lines, bool by_rows, int other_lines, int capacity, int most)
      : capacity_(capacity), meets_(lines.size()), room_(other_lines, 0), givers_(other_lines) {
    for (size_t i = 0; i < lines.size(); ++i) {
      const int remainder = static_cast<int>(lines[i].size()) % capacity;
      left_.push_back(remainder <= most ? remainder : 0);
      given_.push_back(left_.back());
      for (const SddmmBlock& block : lines[i]) meets_[i].push_back(LineOf(block, !by_rows));
    }
  }

  // Again and again a unit of the other line that takes most, from the lines with least left, which
  // are the first to be rid of theirs.
  void Fill() {
    while (true) {
      std::vector<std::vector<int>> takes(givers_.size());
      for (size_t i = 0; i < meets_.size(); ++i) {
        for (const int k : meets_[i]) {
          if (left_[i] > 0 && !Gives(i, k)) takes[k].push_back(static_cast<int>(i));
        }
      }
      const auto most = std::max_element(takes.begin(), takes.end(),
                                         [](auto& a, auto& b) { return a.size() < b.size(); });
      if (most == takes.end() || most->empty()) return;
      std::stable_sort(most->begin(), most->end(),
                       [&](int a, int b) { return left_[a] < left_[b]; });
      most->resize(std::min<size_t>(most->size(), capacity_));
      const auto k = static_cast<int>(most - takes.begin());
      room_[k] += capacity_;
      for (const int i : *most) {
        --left_[i];
        givers_[k].push_back(i);
      }
    }
  }

  // Does without units whose blocks find room in others, if blocks there move on in turn.
  void Prune() {
    std::vector<int> order;
    for (size_t k = 0; k < room_.size(); ++k) {
      if (room_[k] > 0) order.push_back(static_cast<int>(k));
    }
    const auto in_last = [&](int k) { return (givers_[k].size() - 1) % capacity_; };
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return in_last(a) < in_last(b); });
    for (const int k : order) {
      const Remainders before = *this;
      room_[k] -= capacity_;
      bool placed = true;
      while (placed && static_cast<int>(givers_[k].size()) > room_[k]) {
        const int giver = givers_[k].back();
        givers_[k].pop_back();
        std::vector<bool> tried(room_.size(), false);
        tried[k] = room_[k] == 0;
        placed = Place(giver, &tried);
      }
      if (!placed) *this = before;
    }
  }

  // Units more than without: those of other lines, less one of each line that is rid of its own.
  int UnitsMore() const {
    int units = std::accumulate(room_.begin(), room_.end(), 0) / capacity_;
    for (size_t i = 0; i < left_.size(); ++i) units -= given_[i] > 0 && left_[i] == 0;
    return units;
  }
  const std::vector<std::vector<int>>& givers() const { return givers_; }

 private:
  bool Gives(int i, int k) const {
    return std::find(givers_[k].begin(), givers_[k].end(), i) != givers_[k].end();
  }

  // One block of line i to any line with room, or to one whose block can go elsewhere.
  bool Place(int i, std::vector<bool>* tried) {
    for (const int k : meets_[i]) {
      if ((*tried)[k] || room_[k] == 0 || Gives(i, k)) continue;
      (*tried)[k] = true;
      if (static_cast<int>(givers_[k].size()) < room_[k]) {
        givers_[k].push_back(i);
        return true;
      }
      for (size_t g = 0; g < givers_[k].size(); ++g) {
        if (!Place(givers_[k][g], tried)) continue;
        givers_[k][g] = i;
        return true;
      }
    }
    return false;
  }

  int capacity_;
  std::vector<std::vector<int>> meets_;   // by line, the other lines
  std::vector<int> given_, left_;         // by line, blocks to be given away, and still to be given
  std::vector<int> room_;                 // by other line, in blocks
  std::vector<std::vector<int>> givers_;  // by other line
};

}  // namespace

SddmmLines ListSddmmLines(const BsrPattern& pattern, bool by_rows) {
  SddmmLines lines(by_rows ? pattern.block_row_count : pattern.block_col_count);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      lines[by_rows ? i : pattern.col[p]].push_back({i, pattern.col[p], p});
    }
  }
  return lines;
}

SddmmLines MoveRemainders(SddmmLines* lines, bool by_rows, int other_lines, int capacity) {
  std::optional<Remainders> best;
  for (int most = 1; most < capacity; ++most) {
    Remainders remainders(*lines, by_rows, other_lines, capacity, most);
    remainders.Fill();
    remainders.Prune();
    if (remainders.UnitsMore() >= (best ? best->UnitsMore() : 0)) continue;
    best = std::move(remainders);
  }
  SddmmLines across;
  if (!best) return across;
  for (int k = 0; k < other_lines; ++k) {
    const std::vector<int>& givers = best->givers()[k];
    for (size_t g = 0; g < givers.size(); ++g) {
      if (g % capacity == 0) across.emplace_back();
      auto& line = (*lines)[givers[g]];
      const auto block = std::find_if(
          line.begin(), line.end(), [&](const SddmmBlock& b) { return LineOf(b, !by_rows) == k; });
      across.back().push_back(*block);
      line.erase(block);
    }
  }
  return across;
}

}  // namespace filigree
