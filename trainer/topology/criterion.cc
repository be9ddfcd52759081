#include "trainer/topology/criterion.h"

#include <array>
#include <cmath>

namespace filigree {
namespace {

float Magnitude(const ScoreInputs& in, int64_t slot, int64_t) { return std::abs(in.values[slot]); }

// All equal: the engine's tie-break, a hash, decides.
float Random(const ScoreInputs&, int64_t, int64_t) { return 0; }

float Gradient(const ScoreInputs& in, int64_t, int64_t cell) { return std::abs(in.grads[cell]); }

float Taylor(const ScoreInputs& in, int64_t slot, int64_t cell) {
  return std::abs(in.values[slot] * in.grads[cell]);
}

float Grasp(const ScoreInputs& in, int64_t slot, int64_t cell) {
  return in.values[slot] * in.hessian_grads[cell];
}

float Wanda(const ScoreInputs& in, int64_t slot, int64_t cell) {
  const int64_t input = cell % in.parameter->layout.in();
  return std::abs(in.values[slot]) * static_cast<float>(std::sqrt(in.input_squares[input]));
}

float Movement(const ScoreInputs& in, int64_t slot, int64_t cell) {
  const double now = in.values[slot], then = InitialValues(*in.parameter, in.seed)[cell];
  return static_cast<float>(0.5 * (now * now - then * then));
}

}  // namespace

std::span<const Criterion> Criteria() {
  static constexpr std::array rows = {
      Criterion{"magnitude", "|w|", false, false, false, &Magnitude},
      Criterion{"random", "uniform", false, false, false, &Random},
      Criterion{"gradient", "|g|", true, false, false, &Gradient},
      Criterion{"taylor", "|w g|", true, false, false, &Taylor},
      Criterion{"snip", "|w g| at the start", true, false, false, &Taylor},
      Criterion{"grasp", "w (H g) at the start", true, true, false, &Grasp},
      Criterion{"wanda", "|w| times the norm of its input", false, false, true, &Wanda},
      Criterion{"movement", "sum of w dw", false, false, false, &Movement}};
  return rows;
}

const Criterion* FindCriterion(std::string_view name) {
  for (const Criterion& row : Criteria()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

}  // namespace filigree
