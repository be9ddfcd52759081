#include "trainer/linear/linear.h"

namespace filigree {

LinearGroup::LinearGroup(std::vector<std::unique_ptr<Linear>> parts, std::vector<int64_t> widths)
    : parts_(std::move(parts)), offsets_{0} {
  CHECK_EQ(parts_.size(), widths.size());
  for (int64_t width : widths) offsets_.push_back(offsets_.back() + width);
}

void LinearGroup::Materialize(Stream& stream) {
  for (const auto& part : parts_) part->Materialize(stream);
}

void LinearGroup::Forward(ConstTensorView x, TensorView y, Stream& stream) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i]->Forward(x, Part(y, static_cast<int>(i)), stream);
  }
}

void LinearGroup::Backward(ConstTensorView x, ConstTensorView dy, TensorView dx, Stream& stream) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i]->Backward(x, Part(dy, static_cast<int>(i)), dx, /*accumulate_dx=*/i > 0, stream);
  }
}

}  // namespace filigree
