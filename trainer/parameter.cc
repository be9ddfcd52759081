#include "trainer/parameter.h"

#include <cmath>

#include "kernels/base/rng.h"

namespace filigree {

InitialValues::InitialValues(const Parameter& parameter, uint64_t seed)
    : kind_(parameter.init),
      scale_(parameter.init_std),
      seed_(seed),
      stream_(RngStream("init", parameter.name)) {}

double InitialValues::operator[](int64_t logical_index) const {
  switch (kind_) {
    case InitKind::kZeros:
      return 0.0;
    case InitKind::kOnes:
      return 1.0;
    case InitKind::kNormal:
      return scale_ * RandomNormal(seed_, stream_, logical_index);
    case InitKind::kUniform:
      return scale_ * std::sqrt(3.0) * (2.0 * RandomUniform(seed_, stream_, logical_index) - 1.0);
  }
  CHECK(false) << "initialisation " << static_cast<int>(kind_);
}

}  // namespace filigree
