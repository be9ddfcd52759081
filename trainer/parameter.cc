#include "trainer/parameter.h"

#include <cmath>

namespace filigree {

InitialValues::InitialValues(const Parameter& parameter, uint64_t seed)
    : draw_{.scale = parameter.init_std,
            .seed = seed,
            .stream = RngStream("init", parameter.name)} {
  switch (parameter.init) {
    case InitKind::kZeros:
      break;
    case InitKind::kOnes:
      constant_ = 1;
      break;
    case InitKind::kNormal:
      drawn_ = true;
      break;
    case InitKind::kUniform:
      drawn_ = true;
      draw_.kind = DrawKind::kUniform;
      draw_.scale *= std::sqrt(3.0);
      break;
  }
}

double InitialValues::operator[](int64_t logical_index) const {
  return drawn_ ? draw_(static_cast<uint64_t>(logical_index)) : constant_;
}

}  // namespace filigree
