// `n_m`: n of every m consecutive weights of a row stored, drawn at the start and kept (SLoPe,
// arXiv 2405.16325, without its lazily added adapters), or so in rows and columns alike
// (transposable).
//
// State, gradients, exchange and checkpoints hold n / m of the weights; compute scatters them to a
// dense copy, as `masked` does. Where that is 2:4, the backend may multiply it on sparse tensor
// cores (Backend::PrepareTwoFour): y = x W^T sums along the rows of W, dx = dy W along its columns,
// which are 2:4 if the mask is transposable. The weight's gradient sums over tokens, and is dense.
#include <cmath>
#include <sstream>
#include <string>

#include "kernels/sparse/random_layout.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

constexpr int64_t kMaxGroup = 64;

Status Validate(const LinearSpec& linear, const SparsitySpec& sparsity) {
  const int64_t n = sparsity.n, m = sparsity.m;
  std::ostringstream problem;
  if (n < 1 || n >= m || m > kMaxGroup) {
    problem << n << ":" << m << " cannot be kept; give 1 <= n < m <= " << kMaxGroup;
  } else if (linear.in % m != 0 || (sparsity.transposable && linear.out % m != 0)) {
    problem << linear.out << " x " << linear.in << " does not consist of whole "
            << (sparsity.transposable ? "blocks of " + std::to_string(m) + " x " : "rows of ") << m
            << "; choose an m that divides the " << (sparsity.transposable ? "widths" : "inputs")
            << " or exclude it";
  } else if (std::abs(sparsity.sparsity - (1 - static_cast<double>(n) / static_cast<double>(m))) >
             1e-9) {
    problem << "sparsity " << sparsity.sparsity << " is not what " << n << ":" << m
            << " leaves out; leave sparsity out of the config";
  } else {
    return OkStatus();
  }
  return InvalidInput(linear.name + ".weight: " + problem.str());
}

SparseLayout DrawLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed) {
  return RandomNM(linear.out, linear.in, static_cast<int>(sparsity.n), static_cast<int>(sparsity.m),
                  sparsity.transposable, seed, linear.name + ".weight");
}

std::unique_ptr<Linear> Create(const LinearSpec& linear, const SparsitySpec&, SparseLayout layout,
                               Backend& backend) {
  CHECK(layout.kind() == LayoutKind::kNM) << linear.name << ": " << NameOf(layout.kind());
  return MakeMaskedLinear(linear, std::move(layout), backend);
}

}  // namespace

const Parameterisation kNMParameterisation = {
    "n_m", "n of every m weights stored, computed densely, or 2:4 on sparse tensor cores", false, &Validate, &DrawLayout, &Create};

}  // namespace filigree
