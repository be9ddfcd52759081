#include "kernels/planned/planned_gpu.h"

#include <utility>

#include "kernels/planned/joined_layout.h"

namespace filigree {
namespace {

class PlannedLayout final : public PreparedLayout {
 public:
  PlannedLayout(SparseLayout layout, int64_t index_bytes, const GpuCard& card)
      : PreparedLayout(std::move(layout)), index_bytes_(index_bytes), card_(card) {}
  size_t bytes() const override { return static_cast<size_t>(index_bytes_); }
  StepUse step_use(int64_t tokens, bool bias_sums) const override {
    return BlockedStepUse(layout(), tokens, bias_sums, card_);
  }

 private:
  const int64_t index_bytes_;
  const GpuCard& card_;
};

constexpr const char* kNotThere = "a planned GPU has neither memory nor streams";

}  // namespace

DeviceBuffer PlannedGpu::Allocate(size_t bytes, std::string_view kind) {
  CHECK(false) << kNotThere << ": " << bytes << " bytes for " << kind;
}
DeviceBuffer PlannedGpu::AllocatePinned(size_t bytes, std::string_view kind) {
  return Allocate(bytes, kind);
}
void PlannedGpu::CopyAsync(TensorView, ConstTensorView, Stream&) { CHECK(false) << kNotThere; }
void PlannedGpu::ZeroAsync(TensorView, Stream&) { CHECK(false) << kNotThere; }
std::unique_ptr<Stream> PlannedGpu::NewStream(StreamPriority) { CHECK(false) << kNotThere; }
std::unique_ptr<Event> PlannedGpu::NewEvent() { CHECK(false) << kNotThere; }
std::unique_ptr<Event> PlannedGpu::NewTimedEvent() { CHECK(false) << kNotThere; }

std::unique_ptr<PreparedLayout> PlannedGpuBackend::PrepareLayout(const SparseLayout& layout) {
  return std::make_unique<PlannedLayout>(layout, GpuIndexBytes(layout), card_);
}

std::unique_ptr<PreparedLayout> PlannedGpuBackend::PrepareGroup(
    std::span<const PreparedLayout* const> parts, std::span<const int64_t> value_begin) {
  std::optional<SparseLayout> joined = JoinLayouts(parts, value_begin);
  if (!joined || !HopperServes(*joined, card_)) return nullptr;
  return std::make_unique<PlannedLayout>(*std::move(joined), /*index_bytes=*/0, card_);
}

double PlannedGpuBackend::BlockedFlopCost(const SparseLayout& layout) const {
  return GpuBlockedFlopCost(layout);
}

int64_t PlannedGpuBackend::TwoFourBytes(int64_t out, int64_t in, TwoFourKind kind) const {
  return deterministic_ ? 0 : CompressedBytes(out, in, kind, card_);
}

}  // namespace filigree
