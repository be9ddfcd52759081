// Scoring criteria: how much a stored weight matters. The engine keeps the highest scores.
//
// Scores are taken cell by cell in fp32 and summed over blocks, so that every criterion works on
// every layout. A score that is NaN ranks lowest.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "trainer/parameter.h"

namespace filigree {

// What a criterion may read. Arrays that it does not ask for are empty.
struct ScoreInputs {
  const Parameter* parameter = nullptr;
  uint64_t seed = 0;                      // of the run: initial values are functions of it
  std::span<const float> values;          // in stored order [stored_count]
  std::span<const float> grads;           // dense, summed over ranks and micro-batches [out * in]
  std::span<const float> hessian_grads;   // H g, dense [out * in]
  std::span<const double> input_squares;  // sum over tokens of x_j^2 [in]
};

// A gradient here is of the step's mean loss, before clipping.
struct Criterion {
  std::string_view name;
  std::string_view summary;
  bool needs_grads = false, needs_hessian = false, needs_inputs = false;
  bool needs_statistics() const { return needs_grads || needs_hessian || needs_inputs; }
  // The score of stored slot `slot`, which is the logical cell `cell`.
  float (*score)(const ScoreInputs& inputs, int64_t slot, int64_t cell);
};

// Rows: magnitude |w|; random; gradient |g|; taylor |w g|; snip |w g| at the phase's start (Lee et
// al. 2019); grasp w (H g) at the phase's start (Wang et al. 2020: their score is -w (H g), and its
// highest are removed); wanda |w| ||x_j|| (Sun et al. 2024, ranked over the whole weight instead of
// row by row); movement (Sanh et al. 2020): the sum of w dw since initialisation, which telescopes
// to (w^2 - w_0^2) / 2.
std::span<const Criterion> Criteria();
const Criterion* FindCriterion(std::string_view name);

}  // namespace filigree
