// State moved from layout to layout where it lies, on one rank and on shards of several.
#include "tests/unit/state_move_testing.h"

#include "comm/bootstrap.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"

namespace filigree {
namespace {

TEST(StateMoveTest, IsTheHostsWayBitForBit) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  CheckStateMoves(*world, backend, *stream);
}

std::vector<int32_t> SlotsOf(const SparseLayout& from, const SparseLayout& to, KeptRows kept) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  const auto before = backend.PrepareLayout(from), after = backend.PrepareLayout(to);
  std::vector<int32_t> slots(static_cast<size_t>(to.stored_count()), -7);
  const auto view = [](std::vector<int32_t>& host) {
    return TensorView(host.data(), DType::kI32, {static_cast<int64_t>(host.size())});
  };
  MapStoredArgs args = {.from = before.get(), .to = after.get(), .slots = view(slots)};
  if (!kept.rows.empty()) args.rows = view(kept.rows), args.columns = view(kept.columns);
  backend.MapStored(args, *stream);
  return slots;
}

TEST(StateMoveTest, SlotsHoldTheSameCells) {
  for (const SparseLayout& from : MovableLayouts()) {
    for (const SparseLayout& to : MovableLayouts()) {
      const std::vector<int32_t> slots = SlotsOf(from, to, {});
      EXPECT_EQ(slots, ExpectedSlots(from, to, {}))
          << NameOf(from.kind()) << " to " << NameOf(to.kind());
      std::vector<int64_t> without_padding(slots.begin(), slots.end());
      for (int64_t& slot : without_padding) slot = std::max<int64_t>(slot, kNewCell);
      EXPECT_EQ(without_padding, IndexRemap(from, to));
    }
    const KeptRows kept = {{3, 4, 69}, {0, 50, 51, 95}};
    const SparseLayout small = SparseLayout::Dense(3, 4, 5);
    EXPECT_EQ(SlotsOf(from, small, kept), ExpectedSlots(from, small, kept));
  }
}

}  // namespace
}  // namespace filigree
