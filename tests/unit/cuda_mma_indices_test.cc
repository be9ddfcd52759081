// The index arithmetic of the mma.sync kernels, with ldmatrix and mma played on the host lane by
// lane as the instruction set defines them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "kernels/cuda/mma_indices.h"

namespace filigree::mma {
namespace {

constexpr int kDepth = 32;  // reduction elements of a tile

// An operand of kExtent (m or n) by kDepth (k) as the kernels lay it out: element (extent, k) holds
// a small integer of its own.
template <int kExtent, bool kRowsAlongK>
struct Operand {
  static constexpr int kRows = kRowsAlongK ? kDepth : kExtent;
  static constexpr int kChunks = (kRowsAlongK ? kExtent : kDepth) / kChunkElements;

  static int Value(int extent, int k) { return (extent * 7 + k * 5) % 23 - 11; }

  Operand() : shared(kRows * kChunks * kChunkElements) {
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kChunks * kChunkElements; ++column) {
        const int offset = TileOffset<kChunks>(row, column / kChunkElements) / 2;
        shared.at(offset + column % kChunkElements) =
            kRowsAlongK ? Value(column, row) : Value(row, column);
      }
    }
  }

  // ldmatrix.x4(.trans) of the i-th 16 elements after `extent` by the k-th 16 of the reduction:
  // register r of a lane holds the elements [2r] and [2r + 1].
  std::vector<std::vector<int>> Load(bool is_a, int extent, int i, int k) const {
    std::vector<int> address(32);
    for (int lane = 0; lane < 32; ++lane) {
      const RowChunk at = is_a ? AddressOfA(kRowsAlongK, lane) : AddressOfB(kRowsAlongK, lane);
      const int base = kRowsAlongK ? TileOffset<kChunks>(at.row, extent / kChunkElements + at.chunk)
                                   : TileOffset<kChunks>(extent + at.row, at.chunk);
      address[lane] =
          static_cast<int>(MoveInTile<kRowsAlongK, kChunks>(static_cast<uint32_t>(base), i, k));
    }
    ExpectNoConflict(address);
    std::vector<std::vector<int>> registers(32);
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int e = 0; e < 2; ++e) {
          const int along = lane / 4, pair = lane % 4 * 2 + e;
          const int row = kRowsAlongK ? pair : along, column = kRowsAlongK ? along : pair;
          registers[lane].push_back(shared.at(address[matrix * 8 + row] / 2 + column));
        }
      }
    }
    return registers;
  }

  // The eight rows of a matrix lie in different 16-byte groups of banks.
  static void ExpectNoConflict(const std::vector<int>& address) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::set<int> banks;
      for (int row = 0; row < 8; ++row) banks.insert(address[matrix * 8 + row] / kChunkBytes % 8);
      EXPECT_EQ(banks.size(), 8u);
    }
  }

  std::vector<int> shared;
};

// A lane's element of A (16 x 16) or of one 8-wide half of B, as mma.m16n8k16 defines its
// registers.
int ElementOfA(const std::vector<std::vector<int>>& a, int m, int k) {
  return a[m % 8 * 4 + k % 8 / 2][(m / 8 + k / 8 * 2) * 2 + k % 2];
}
int ElementOfB(const std::vector<std::vector<int>>& b, int half, int n, int k) {
  return b[n * 4 + k % 8 / 2][(half * 2 + k / 8) * 2 + k % 2];
}

template <int kExtent, bool kRowsAlongK, bool kIsA>
void ExpectOperand(int part) {
  const Operand<kExtent, kRowsAlongK> operand;
  for (int extent = 0; extent < kExtent; extent += part) {
    for (int i = 0; i < part / 16; ++i) {
      for (int k = 0; k < kDepth / 16; ++k) {
        const auto registers = operand.Load(kIsA, extent, i, k);
        for (int e = 0; e < 16; ++e) {
          for (int d = 0; d < 16; ++d) {
            const int found =
                kIsA ? ElementOfA(registers, e, d) : ElementOfB(registers, e / 8, e % 8, d);
            ASSERT_EQ(found, operand.Value(extent + i * 16 + e, k * 16 + d))
                << kExtent << " " << kRowsAlongK << ": " << extent << " " << i << " " << k;
          }
        }
      }
    }
  }
}

TEST(MmaIndicesTest, OperandsReachTheirRegistersWithoutBankConflicts) {
  // Input rows and forward blocks; then blocks of the transposed product and of the gradient.
  ExpectOperand<128, false, true>(64);
  ExpectOperand<256, false, true>(64);
  ExpectOperand<128, false, false>(64);
  ExpectOperand<64, false, false>(64);
  ExpectOperand<32, false, false>(32);
  ExpectOperand<16, false, false>(16);
  ExpectOperand<128, true, false>(64);
  ExpectOperand<256, true, false>(64);
  ExpectOperand<64, true, false>(64);
  ExpectOperand<32, true, false>(32);
  ExpectOperand<16, true, false>(16);
  ExpectOperand<128, true, true>(64);
  ExpectOperand<64, true, true>(64);
  ExpectOperand<32, true, true>(32);
  ExpectOperand<16, true, true>(16);
}

TEST(MmaIndicesTest, AccumulatorsCoverTheirTileOnce) {
  std::set<int> cells;
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const Cell cell = AccumulatorCell(lane, r);
      cells.insert(cell.row * 8 + cell.column);
      EXPECT_EQ(cell.row, lane / 4 + (r >= 2 ? 8 : 0));
      EXPECT_EQ(cell.column, lane % 4 * 2 + r % 2);
    }
  }
  EXPECT_EQ(cells.size(), 128u);
  EXPECT_EQ(*cells.rbegin(), 127);
}

TEST(MmaIndicesTest, SlicesWalkTheBlocksInOrder) {
  for (const int side : {16, 32, 64, 128}) {
    int slice = 0;
    for (int entry = 0; entry < 5; ++entry) {
      for (int inside = 0; inside < side; inside += kSliceDepth, ++slice) {
        const SlicePosition position = PositionOfSlice(slice, SliceShift(side));
        EXPECT_EQ(position.entry, entry) << side;
        EXPECT_EQ(position.inside, inside) << side;
      }
    }
  }
}

TEST(MmaIndicesTest, GroupsCoverEveryBlockOnce) {
  const std::vector<std::vector<int>> layouts = {
      {0, 0}, {0, 1}, {0, 7, 7, 8, 24, 24}, {0, 0, 0, 33}, {0, 16, 32, 33}, {0, 5, 5, 5}};
  for (const auto& offsets : layouts) {
    const int rows = static_cast<int>(offsets.size()) - 1;
    for (int shift = 0; shift <= 4; ++shift) {
      std::vector<int> covered(offsets.back(), 0);
      const int groups = GroupIndexCount(rows, offsets.back(), shift);
      for (int group = 0; group < groups; ++group) {
        const int row = RowOfGroup(offsets.data(), rows, group, shift);
        const int within = group - FirstGroupOfRow(row, offsets[row], shift);
        ASSERT_GE(within, 0);
        const int begin = offsets[row] + (within << shift);
        for (int p = begin; p < std::min(begin + (1 << shift), offsets[row + 1]); ++p) ++covered[p];
      }
      EXPECT_EQ(covered, std::vector<int>(offsets.back(), 1)) << "groups of " << (1 << shift);
    }
  }
}

}  // namespace
}  // namespace filigree::mma
