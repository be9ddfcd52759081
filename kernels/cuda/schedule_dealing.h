// What the schedules of the block-sparse products share (block_schedule.cc, sddmm_schedule.cc).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/cuda/block_schedule.h"

namespace filigree {

inline void CheckPattern(const BsrPattern& pattern) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  CHECK(valid(pattern.block.rows) && valid(pattern.block.cols))
      << "blocks of " << pattern.block.rows << "x" << pattern.block.cols;
  CHECK_EQ(pattern.row_begin.size(), static_cast<size_t>(pattern.block_row_count) + 1);
  CHECK_EQ(pattern.row_begin.front(), 0);
  CHECK_EQ(pattern.row_begin.back(), pattern.block_count());
  CHECK(pattern.value_begin.empty() || pattern.value_begin.size() == pattern.col.size());
  CHECK_LE(pattern.value_extent() / kChunk, int64_t{1} << 31);
  // SpmmStep::input_chunk has 16 bits.
  CHECK_LE(std::max(pattern.in_features(), pattern.out_features()) / kChunk, 32767);
  for (int i = 0; i < pattern.block_row_count; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      CHECK(pattern.col[p] >= 0 && pattern.col[p] < pattern.block_col_count);
      CHECK(p == pattern.row_begin[i] || pattern.col[p] > pattern.col[p - 1])
          << "columns of block row " << i << " do not ascend";
      CHECK(pattern.ValueBegin(p) % std::max(pattern.block.cols, kChunk) == 0);
    }
  }
}

// Deals items in order, each to the worker that is free first (lowest index on a tie). `longest`,
// if given, receives the time at which the last worker is done.
template <typename Item, typename Cost>
std::pair<std::vector<Item>, std::vector<int32_t>> Deal(const std::vector<Item>& items, int workers,
                                                        Cost cost, double* longest = nullptr) {
  using Free = std::pair<double, int>;
  std::priority_queue<Free, std::vector<Free>, std::greater<>> queue;
  for (int w = 0; w < workers; ++w) queue.push({0.0, w});
  std::vector<std::vector<Item>> lists(workers);
  for (const Item& item : items) {
    auto [time, worker] = queue.top();
    queue.pop();
    lists[worker].push_back(item);
    queue.push({time + cost(item), worker});
    if (longest != nullptr) *longest = std::max(*longest, time + cost(item));
  }
  std::pair<std::vector<Item>, std::vector<int32_t>> dealt;
  dealt.second.push_back(0);
  for (const auto& list : lists) {
    dealt.first.insert(dealt.first.end(), list.begin(), list.end());
    dealt.second.push_back(static_cast<int32_t>(dealt.first.size()));
  }
  return dealt;
}

}  // namespace filigree
