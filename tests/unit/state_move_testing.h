// MoveState and the operations below it against the host's way: arrays gathered to the host, taken
// slot by slot, and scattered into a state of the same form. Bit for bit, on any backend.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "trainer/state_move.h"

namespace filigree {

// Layouts of one weight [70, 96], of every kind; and one with columns beyond 16 bits.
inline std::vector<SparseLayout> MovableLayouts() {
  return {SparseLayout::Dense(70, 96),
          SparseLayout::Dense(70, 96, 104),
          RandomUnstructured(70, 96, 0.3, 1, "a"),
          RandomUnstructured(70, 96, 0.8, 2, "b"),
          RandomUniformBlocks(70, 96, 16, 32, 0.5, 3, "c"),
          RandomUniformBlocks(70, 96, 16, 32, 0.7, 4, "d"),
          RandomUniformBlocks(70, 96, 32, 64, 0.6, 5, "e"),
          RandomNM(70, 96, 2, 4, false, 6, "f"),
          RandomUnstructuredCells(70, 96, 0, 7, "g")};
}

// Rows and columns that stay of a weight, and the slots of `from` that those of `to` come from:
// through the logical cells, unlike the operation.
struct KeptRows {
  std::vector<int32_t> rows, columns;
};
inline std::vector<int32_t> ExpectedSlots(const SparseLayout& from, const SparseLayout& to,
                                          const KeptRows& kept) {
  std::map<int64_t, int32_t> slot_of_cell;
  const std::vector<int64_t> before = from.LogicalIndices();
  for (size_t slot = 0; slot < before.size(); ++slot) {
    if (before[slot] >= 0) slot_of_cell[before[slot]] = static_cast<int32_t>(slot);
  }
  std::vector<int32_t> slots;
  for (const int64_t cell : to.LogicalIndices()) {
    if (cell < 0) {
      slots.push_back(kPaddingCell);
      continue;
    }
    int64_t row = cell / to.in(), column = cell % to.in();
    if (!kept.rows.empty()) row = kept.rows[row], column = kept.columns[column];
    const auto found = slot_of_cell.find(row * from.in() + column);
    slots.push_back(found == slot_of_cell.end() ? kNewCell : found->second);
  }
  return slots;
}

// A state of one form before and after a move of several parameters, some of which change layouts.
class StateMoveCheck {
 public:
  StateMoveCheck(StateFormat format, bool ages_before, bool ages_after, Communicator& world,
                 Backend& backend, Stream& stream)
      : format_(format),
        ages_before_(ages_before),
        ages_after_(ages_after),
        world_(world),
        backend_(backend),
        stream_(stream) {
    const std::vector<SparseLayout> layouts = MovableLayouts();
    const auto add = [&](SparseLayout before, SparseLayout after, int64_t padding = 0) {
      before_.push_back(ParameterOf(std::move(before), padding));
      after_.push_back(ParameterOf(std::move(after), padding));
    };
    add(SparseLayout::Dense(1, 200), SparseLayout::Dense(1, 200));
    for (const size_t from : {0, 2, 4}) {
      for (const size_t to : {1, 3, 5, 7}) add(layouts[from], layouts[to], to == 3 ? 50 : 0);
    }
    add(SparseLayout::Dense(90, 70), SparseLayout::Dense(90, 70), 300);
    // Compacted: every third row and every fourth column go.
    add(SparseLayout::Dense(90, 120, 128), SparseLayout::Dense(60, 90, 96));
    for (int32_t row = 0; row < 90; ++row) {
      if (row % 3 != 1) kept_.rows.push_back(row);
    }
    for (int32_t column = 0; column < 120; ++column) {
      if (column % 4 != 2) kept_.columns.push_back(column);
    }
  }

  void Run(bool moments) {
    FlatBuffer from = Buffer(before_, ages_before_), to = Buffer(after_, ages_after_),
               expected = Buffer(after_, ages_after_);
    Fill(from);
    std::vector<ParameterMove> moves;
    for (size_t i = 0; i < before_.size(); ++i) {
      const int segment = static_cast<int>(i);
      moves.push_back(
          {.source = segment, .target = segment, .from = &before_[i], .to = &after_[i]});
    }
    moves.back().rows = kept_.rows;
    moves.back().columns = kept_.columns;
    constexpr int64_t kUpdates = 17;
    MoveState(from, to, moves, moments, kUpdates, world_, backend_, stream_);
    for (size_t i = 0; i < moves.size(); ++i) {
      for (const StateKind kind : Kinds(ages_after_)) {
        if (kind != StateKind::kMaster && !moments) continue;
        TakeOnHost(moves[i], kind, from, expected, kUpdates);
      }
      ExpectSame(static_cast<int>(i), to, expected);
    }
  }

 private:
  static Parameter ParameterOf(SparseLayout layout, int64_t padding) {
    Parameter parameter;
    parameter.name = "p";
    parameter.shape = {layout.out(), layout.in()};
    parameter.layout = std::move(layout);
    parameter.padding_count = padding;
    return parameter;
  }

  static std::vector<StateKind> Kinds(bool ages) {
    std::vector<StateKind> kinds = {StateKind::kMaster, StateKind::kM, StateKind::kV};
    if (ages) kinds.push_back(StateKind::kBorn);
    return kinds;
  }

  FlatBuffer Buffer(const std::vector<Parameter>& parameters, bool ages) {
    std::vector<SegmentSpec> segments;
    for (const Parameter& parameter : parameters) {
      segments.push_back({.count = parameter.segment_count()});
    }
    const int shards = world_.size();
    FlatBuffer buffer(backend_.device(), FlatLayout::Build(segments, shards, 20000),
                      shards > 1 ? world_.rank() : 0, backend_.device().compute_dtype(),
                      DType::kF32, stream_, format_, {}, shards > 1 ? &world_ : nullptr);
    if (ages) buffer.AllocateBorn(stream_);
    return buffer;
  }

  // Random numbers, padding zero.
  void Fill(FlatBuffer& buffer) {
    for (size_t i = 0; i < before_.size(); ++i) {
      const std::vector<int64_t> cells = before_[i].layout.LogicalIndices();
      for (const StateKind kind : Kinds(ages_before_)) {
        std::vector<float> numbers(static_cast<size_t>(before_[i].segment_count()), 0.0f);
        const uint64_t draw = RngStream("fill", "p", i * 8 + static_cast<uint64_t>(kind));
        for (size_t slot = 0; slot < cells.size(); ++slot) {
          if (cells[slot] < 0) continue;
          const double x = RandomNormal(9, draw, slot);
          numbers[slot] = static_cast<float>(kind == StateKind::kV      ? 1e-3 * x * x
                                             : kind == StateKind::kBorn ? slot % 7
                                                                        : 0.1 * x);
        }
        ScatterSegment(buffer, static_cast<int>(i), kind,
                       std::as_bytes(std::span<const float>(numbers)), stream_);
      }
    }
  }

  std::vector<float> Gathered(const FlatBuffer& buffer, int segment, StateKind kind) {
    const auto bytes = GatherSegment(buffer, segment, kind, world_, stream_);
    std::vector<float> numbers(bytes.size() / sizeof(float));
    std::memcpy(numbers.data(), bytes.data(), bytes.size());
    return numbers;
  }

  void TakeOnHost(const ParameterMove& move, StateKind kind, const FlatBuffer& from,
                  FlatBuffer& expected, int64_t updates) {
    std::vector<float> before(static_cast<size_t>(move.from->segment_count()), 0.0f);
    if (kind != StateKind::kBorn || from.has_born()) before = Gathered(from, move.source, kind);
    std::vector<float> after(static_cast<size_t>(move.to->segment_count()), 0.0f);
    const std::vector<int32_t> slots =
        ExpectedSlots(move.from->layout, move.to->layout, {move.rows, move.columns});
    for (size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] >= 0) after[i] = before[slots[i]];
      if (slots[i] == kNewCell && kind == StateKind::kBorn) after[i] = static_cast<float>(updates);
    }
    ScatterSegment(expected, move.target, kind, std::as_bytes(std::span<const float>(after)),
                   stream_);
  }

  std::vector<std::byte> Values(const FlatBuffer& buffer, int segment) {
    const TensorView values = buffer.Values(segment);
    std::vector<std::byte> bytes(values.bytes());
    backend_.device().CopyAsync(TensorView(bytes.data(), values.dtype(), {values.size()}), values,
                                stream_);
    stream_.Synchronize();
    return bytes;
  }

  void ExpectSame(int segment, const FlatBuffer& found, const FlatBuffer& expected) {
    EXPECT_TRUE(Values(found, segment) == Values(expected, segment)) << "values of " << segment;
    for (const StateKind kind : Kinds(ages_after_)) {
      EXPECT_EQ(Gathered(found, segment, kind), Gathered(expected, segment, kind))
          << "array " << static_cast<int>(kind) << " of segment " << segment;
    }
  }

  const StateFormat format_;
  const bool ages_before_, ages_after_;
  Communicator& world_;
  Backend& backend_;
  Stream& stream_;
  std::vector<Parameter> before_, after_;
  KeptRows kept_;  // of the last parameter
};

// All forms of state, with ages before, after, or at both times.
inline void CheckStateMoves(Communicator& world, Backend& backend, Stream& stream) {
  for (const bool bf16 : {false, true}) {
    for (const bool eight_bit : {false, true}) {
      for (const bool ages_before : {false, true}) {
        for (const bool ages_after : {false, true}) {
          SCOPED_TRACE(std::string(bf16 ? "BF16" : "F32") + (eight_bit ? ", 8-bit moments" : "") +
                       (ages_before ? ", ages before" : "") + (ages_after ? ", ages after" : ""));
          StateMoveCheck check({.bf16 = bf16, .eight_bit_moments = eight_bit}, ages_before,
                               ages_after, world, backend, stream);
          check.Run(/*moments=*/true);
          check.Run(/*moments=*/false);
        }
      }
    }
  }
}

}  // namespace filigree
