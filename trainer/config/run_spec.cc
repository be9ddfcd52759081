#include "kernels/base/check.h"
#include "trainer/spec.h"

namespace filigree {

int RunSpec::PhaseIndexOf(int64_t step) const {
  CHECK(!phases.empty());
  CHECK(step >= 0 && step <= total_steps()) << "step " << step << " of " << total_steps();
  int index = 0;
  while (index + 1 < static_cast<int>(phases.size()) && phases[index + 1].first_step <= step) {
    ++index;
  }
  return index;
}

const PhaseSpec& RunSpec::PhaseOf(int64_t step) const { return phases[PhaseIndexOf(step)]; }

}  // namespace filigree
