// Scoring criteria: how much a stored weight matters. The engine keeps the highest scores.
//
// Scores are taken cell by cell in fp32 and summed over blocks, so that every criterion works on
// every layout. A score that is NaN ranks lowest.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/backend.h"
#include "trainer/parameter.h"

namespace filigree {

// What a criterion may read, in the device's memory but for `input_squares`. Arrays that it does
// not ask for are empty.
struct ScoreInputs {
  const Parameter* parameter = nullptr;
  uint64_t seed = 0;                      // of the run: initial values are functions of it
  ConstTensorView values = {};            // F32, in stored order [stored_count]
  ConstTensorView grads = {};             // F32, summed over ranks and micro-batches [out, in]
  ConstTensorView hessian_grads = {};     // F32, H g [out, in]
  std::span<const double> input_squares = {};  // sum over tokens of x_j^2 [in]
};

// What a cell's score is the product of. Of nothing: all scores are equal, and chance decides.
struct ScoreFactors {
  bool value = false, grad = false, hessian_grad = false, input_norm = false;
  bool absolute = true;
  bool any() const { return value || grad || hessian_grad || input_norm; }
};

// A gradient here is of the step's mean loss, before clipping.
struct Criterion {
  std::string_view name;
  std::string_view summary;
  ScoreFactors factors = {};
  // Where the score is no such product: of the cell `cell` of a parameter, whose value is `value`.
  float (*score)(const InitialValues& initial, float value, int64_t cell) = nullptr;

  bool needs_grads() const { return factors.grad || factors.hessian_grad; }
  bool needs_hessian() const { return factors.hessian_grad; }
  bool needs_inputs() const { return factors.input_norm; }
  bool needs_statistics() const { return needs_grads() || needs_inputs(); }
};

// Rows: magnitude |w|; random; gradient |g|; taylor |w g|; snip |w g| at the phase's start (Lee et
// al. 2019); grasp w (H g) at the phase's start (Wang et al. 2020: their score is -w (H g), and its
// highest are removed); wanda |w| ||x_j|| (Sun et al. 2024, ranked over the whole weight instead of
// row by row); movement (Sanh et al. 2020): the sum of w dw since initialisation, which telescopes
// to (w^2 - w_0^2) / 2.
std::span<const Criterion> Criteria();
const Criterion* FindCriterion(std::string_view name);

// Scores of the stored units of `weight` (the parameter's layout) into `scores` [units] F32; those
// of others stay as they are. Returns them, or nothing where all are equal. Memory beyond `scores`:
// the norms of the inputs [in].
ConstTensorView ScoreStored(const Criterion& criterion, const ScoreInputs& inputs,
                            const PreparedLayout& weight, TensorView scores, Backend& backend,
                            Stream& stream);

}  // namespace filigree
