#include "trainer/parameter.h"

#include <cmath>

#include "kernels/base/rng.h"

namespace filigree {

double InitialValue(const Parameter& parameter, uint64_t seed, int64_t logical_index) {
  switch (parameter.init) {
    case InitKind::kZeros:
      return 0.0;
    case InitKind::kOnes:
      return 1.0;
    case InitKind::kNormal:
      return parameter.init_std *
             RandomNormal(seed, RngStream("init", parameter.name), logical_index);
    case InitKind::kUniform:
      return parameter.init_std * std::sqrt(3.0) *
             (2.0 * RandomUniform(seed, RngStream("init", parameter.name), logical_index) - 1.0);
  }
  CHECK(false) << parameter.name;
}

}  // namespace filigree
