// AdamW of one element, and the factors that an update shares.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/backend.h"

namespace filigree {

struct AdamWFactors {
  float lr, beta1, beta2, rest1, rest2;  // rest = 1 - beta, from double
  float correction1, correction2;        // 1 / (1 - beta^step)
  float epsilon, weight_decay;
  // For elements with an age of their own.
  float step, inverse_ramp;    // 1 / max(growth_ramp, 1)
  float log_beta1, log_beta2;  // natural
};

inline AdamWFactors FactorsOf(const AdamWArgs& args) {
  const auto steps = static_cast<double>(args.step);
  return {
      .lr = static_cast<float>(args.lr),
      .beta1 = static_cast<float>(args.beta1),
      .beta2 = static_cast<float>(args.beta2),
      .rest1 = static_cast<float>(1 - args.beta1),
      .rest2 = static_cast<float>(1 - args.beta2),
      .correction1 = static_cast<float>(1 / (1 - std::pow(args.beta1, steps))),
      .correction2 = static_cast<float>(1 / (1 - std::pow(args.beta2, steps))),
      .epsilon = static_cast<float>(args.epsilon),
      .weight_decay = static_cast<float>(args.weight_decay),
      .step = static_cast<float>(args.step),
      .inverse_ramp = 1.0f / static_cast<float>(std::max<int64_t>(args.growth_ramp, 1)),
      .log_beta1 = static_cast<float>(std::log(args.beta1)),
      .log_beta2 = static_cast<float>(std::log(args.beta2)),
  };
}

// The factors of an element that joined after `born` updates.
__device__ __forceinline__ AdamWFactors AtAge(AdamWFactors f, float born) {
  if (born == 0) return f;
  const float age = f.step - born;
  f.lr *= fminf(1.0f, age * f.inverse_ramp);
  f.correction1 = -1.0f / expm1f(age * f.log_beta1);
  f.correction2 = -1.0f / expm1f(age * f.log_beta2);
  return f;
}

// `g`: the gradient, scaled. Which product of a sum is rounded is written out: left to the compiler
// it differs between kernels, and so would the bits of an element that is another launch's tail.
__device__ __forceinline__ void UpdateElement(const AdamWFactors& f, float g, float* w, float* m,
                                              float* v) {
  *m = fmaf(f.beta1, *m, f.rest1 * g);
  *v = fmaf(f.beta2, *v, f.rest2 * g * g);
  const float direction = *m * f.correction1 / (sqrtf(*v * f.correction2) + f.epsilon);
  *w -= f.lr * (direction + f.weight_decay * *w);
}

}  // namespace filigree
