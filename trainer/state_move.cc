#include "trainer/state_move.h"

#include <algorithm>

#include "trainer/device_segments.h"

namespace filigree {
namespace {

constexpr StateKind kKinds[] = {StateKind::kMaster, StateKind::kM, StateKind::kV, StateKind::kBorn};
constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
constexpr auto kSlot = static_cast<int64_t>(sizeof(int32_t));
constexpr auto kHalf = static_cast<int64_t>(sizeof(BFloat16));

class StateMover {
 public:
  StateMover(const FlatBuffer& from, FlatBuffer& to, bool moments, int64_t updates_done,
             Communicator& communicator, Backend& backend, Stream& stream)
      : from_(from),
        to_(to),
        moments_(moments),
        updates_done_(static_cast<float>(updates_done)),
        communicator_(communicator),
        backend_(backend),
        stream_(stream) {}

  // Memory for the largest of the moves.
  void Reserve(std::span<const ParameterMove> moves) {
    MoveSizes sizes;
    for (const ParameterMove& move : moves) {
      const int64_t source = move.from->segment_count(), target = move.to->segment_count();
      if (!HoldsAll(move.source)) sizes.gathered = std::max(sizes.gathered, source);
      if (move.remaps()) sizes.remapped = std::max(sizes.remapped, target);
      if (RoundsThroughHalves(to_)) sizes.halves = std::max(sizes.halves, target);
    }
    Device& device = backend_.device();
    const auto allocate = [&](int64_t bytes) {
      return device.Allocate(static_cast<size_t>(bytes), "scratch");
    };
    gathered_ = allocate(sizes.gathered * kFloat);
    slots_ = allocate(sizes.remapped * kSlot);
    moved_ = allocate(sizes.remapped * kFloat);
    halves_ = allocate(sizes.halves * kHalf);
  }

  void Move(const ParameterMove& move) {
    const bool remaps = move.remaps();
    if (remaps) Map(move);
    for (const StateKind kind : kKinds) {
      if (kind != StateKind::kMaster && !moments_) continue;
      if (kind == StateKind::kBorn && !to_.has_born()) continue;
      ConstTensorView values = Gather(move, kind);
      if (remaps) values = Take(move, kind, values);
      const int64_t count = move.to->segment_count();
      CHECK_EQ(values.size(), count) << move.to->name;
      const TensorView halves =
          halves_.bytes() > 0 ? halves_.View(DType::kBF16, count) : TensorView();
      ScatterOnDevice(to_, move.target, kind, values, halves, backend_, stream_);
    }
  }

  int64_t bytes() const { return bytes_; }

 private:
  // Whether no array of the segment needs to be gathered.
  bool HoldsAll(int segment) const {
    if (moments_ && to_.has_born() && !from_.has_born()) return false;  // ages begin as zeros
    return std::ranges::all_of(kKinds, [&](StateKind kind) {
      if (kind != StateKind::kMaster && !moments_) return true;
      if (kind == StateKind::kBorn && !to_.has_born()) return true;
      return HoldsWhole(from_, segment, kind);
    });
  }

  ConstTensorView Gather(const ParameterMove& move, StateKind kind) {
    const int64_t count = move.from->segment_count();
    const TensorView memory =
        gathered_.bytes() > 0 ? gathered_.View(DType::kF32, count) : TensorView();
    if (kind == StateKind::kBorn && !from_.has_born()) {
      backend_.device().ZeroAsync(memory, stream_);
      return memory;
    }
    if (from_.layout().shards() > 1) bytes_ += count * kFloat;
    return GatherOnDevice(from_, move.source, kind, memory, communicator_, backend_, stream_);
  }

  // The slots of the target in the source.
  void Map(const ParameterMove& move) {
    const auto from = backend_.PrepareLayout(move.from->layout);
    const auto to = backend_.PrepareLayout(move.to->layout);
    const DeviceBuffer rows = Upload(move.rows), columns = Upload(move.columns);
    const auto view = [](const DeviceBuffer& buffer, const std::vector<int32_t>& host) {
      return host.empty() ? ConstTensorView()
                          : buffer.View(DType::kI32, static_cast<int64_t>(host.size()));
    };
    backend_.MapStored({.from = from.get(),
                        .to = to.get(),
                        .rows = view(rows, move.rows),
                        .columns = view(columns, move.columns),
                        .slots = Slots(move)},
                       stream_);
    stream_.Synchronize();  // the layouts and uploads are read until then
  }

  DeviceBuffer Upload(const std::vector<int32_t>& host) {
    const auto count = static_cast<int64_t>(host.size());
    DeviceBuffer buffer = backend_.device().Allocate(host.size() * sizeof(int32_t), "scratch");
    if (count == 0) return buffer;
    backend_.device().CopyAsync(buffer.View(DType::kI32, count),
                                ConstTensorView(host.data(), DType::kI32, {count}), stream_);
    return buffer;
  }

  TensorView Slots(const ParameterMove& move) const {
    return slots_.View(DType::kI32, move.to->layout.stored_count());
  }

  ConstTensorView Take(const ParameterMove& move, StateKind kind, ConstTensorView values) {
    const TensorView moved = moved_.View(DType::kF32, move.to->segment_count());
    backend_.TakeStored({.from = values,
                         .slots = Slots(move),
                         .to = moved,
                         .fresh = kind == StateKind::kBorn ? updates_done_ : 0.0f},
                        stream_);
    return moved;
  }

  const FlatBuffer& from_;
  FlatBuffer& to_;
  const bool moments_;
  const float updates_done_;
  Communicator& communicator_;
  Backend& backend_;
  Stream& stream_;
  DeviceBuffer gathered_, slots_, moved_, halves_;
  int64_t bytes_ = 0;
};

}  // namespace

int64_t MoveState(const FlatBuffer& from, FlatBuffer& to, std::span<const ParameterMove> moves,
                  bool moments, int64_t updates_done, Communicator& communicator,
                  Backend& backend, Stream& stream) {
  StateMover mover(from, to, moments, updates_done, communicator, backend, stream);
  mover.Reserve(moves);
  for (const ParameterMove& move : moves) mover.Move(move);
  stream.Synchronize();
  return mover.bytes();
}

int64_t MoveBytes(const MoveSizes& sizes) {
  return sizes.gathered * kFloat + sizes.remapped * (kSlot + kFloat) + sizes.halves * kHalf;
}

}  // namespace filigree
