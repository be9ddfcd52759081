// AdamW over contiguous elements of the CPU's own dtype, ages included: what all forms of the state
// are brought to.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {

template <typename T>
class AdamWElements {
 public:
  AdamWElements(const AdamWArgs& args, double scale)
      : args_(args), scale_(scale), from_start_(FactorsAt(args.step, 1)) {}

  // `born` may be null: all elements were there from the start.
  void Update(T* values, T* master, const T* grads, T* m, T* v, const T* born, int64_t n) const {
    const auto update = [&](int64_t begin, int64_t end, const AdamWFactors& factors) {
      Simd<T>().adamw(values + begin, master + begin, grads + begin, m + begin, v + begin, factors,
                      end - begin);
    };
    if (!born) return update(0, n, from_start_);
    for (int64_t run = 0; run < n;) {  // elements of one age in a row
      const T birth = born[run];
      int64_t run_end = run + 1;
      while (run_end < n && born[run_end] == birth) ++run_end;
      update(run, run_end, birth == T(0) ? from_start_ : FactorsOf(birth));
      run = run_end;
    }
  }

 private:
  // The factors for elements whose own step is `step`; `ramp` scales their update.
  AdamWFactors FactorsAt(int64_t step, double ramp) const {
    return {
        .grad_scale = scale_,
        .lr = args_.lr * ramp,
        .beta1 = args_.beta1,
        .beta2 = args_.beta2,
        .epsilon = args_.epsilon,
        .weight_decay = args_.weight_decay,
        .correction1 = 1.0 / (1.0 - std::pow(args_.beta1, static_cast<double>(step))),
        .correction2 = 1.0 / (1.0 - std::pow(args_.beta2, static_cast<double>(step))),
    };
  }
  // For elements that joined after `birth` updates.
  AdamWFactors FactorsOf(T birth) const {
    const int64_t age = args_.step - static_cast<int64_t>(birth);
    CHECK_GE(age, 1);
    const double ramp = age < args_.growth_ramp
                            ? static_cast<double>(age) / static_cast<double>(args_.growth_ramp)
                            : 1;
    return FactorsAt(age, ramp);
  }

  const AdamWArgs& args_;
  const double scale_;
  const AdamWFactors from_start_;
};

// AdamW without a master, or with moments in 8 bits; F32 compute.
void AdamWCompact(const AdamWArgs& args, double scale);

}  // namespace filigree
