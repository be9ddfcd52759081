#include "trainer/parameter.h"

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
  }
  CHECK(false) << parameter.name;
}

}  // namespace filigree
