#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {
namespace {

template <typename T>
struct TokenLosses {
  T cross_entropy = 0, divergence = 0;
};

// The losses of one token; its logits become their gradient unless loss_scale is zero. `softened`
// and `teacher_softened` are scratch of a row.
template <typename T>
TokenLosses<T> DistillationRow(const DistillationLossArgs& args, T* logits, int64_t cols,
                               const T* teacher, int64_t target, T* softened, T* teacher_softened) {
  const int64_t vocab = args.vocab_size;
  const bool keep = args.loss_scale != 0;
  if (target == -1) {
    if (keep) std::fill(logits, logits + cols, T(0));
    return {};
  }
  const auto& simd = Simd<T>();
  const T max = simd.max(logits, vocab), teacher_max = simd.max(teacher, vocab);
  const T target_logit = logits[target];
  const T temperature = static_cast<T>(args.temperature), inverse = T(1) / temperature;
  const T teacher_sum =
      simd.exp_sum(teacher, inverse, teacher_max * inverse, teacher_softened, vocab);
  // The sum over the vocabulary of p (u - z), p the teacher's softened probabilities.
  const T mean_difference =
      (simd.dot(teacher_softened, teacher, vocab) - simd.dot(teacher_softened, logits, vocab)) /
      teacher_sum;
  const T softened_sum = simd.exp_sum(logits, inverse, max * inverse, softened, vocab);
  const T sum = simd.exp_sum(logits, T(1), max, keep ? logits : nullptr, vocab);
  TokenLosses<T> losses;
  losses.cross_entropy = std::log(sum) + max - target_logit;
  losses.divergence = temperature * temperature *
                      ((mean_difference - teacher_max + max) * inverse - std::log(teacher_sum) +
                       std::log(softened_sum));
  if (!keep) return losses;
  const T hard = static_cast<T>((1 - args.alpha) * args.loss_scale);
  const T soft = static_cast<T>(args.alpha * args.temperature * args.loss_scale);
  const T own = hard / sum, own_softened = soft / softened_sum, taught = soft / teacher_sum;
  for (int64_t i = 0; i < vocab; ++i) {
    logits[i] = own * logits[i] + own_softened * softened[i] - taught * teacher_softened[i];
  }
  logits[target] -= hard;
  std::fill(logits + vocab, logits + cols, T(0));
  return losses;
}

template <typename T>
void DistillationLossOf(const DistillationLossArgs& args) {
  const int64_t rows = args.logits.rows(), cols = args.logits.cols();
  const auto logits = AsMatrix<T>(args.logits, rows, cols, "logits");
  const auto teacher =
      AsMatrix<T>(args.teacher_logits, rows, args.teacher_logits.cols(), "teacher_logits");
  const int32_t* targets = AsVector<int32_t>(args.targets, rows, "targets");
  T* losses = AsVector<T>(args.losses, rows, "losses");
  T* divergences = AsVector<T>(args.divergences, rows, "divergences");
  CHECK(args.vocab_size >= 1 && args.vocab_size <= std::min(cols, teacher.cols))
      << "vocabulary of " << args.vocab_size << " in " << cols << " columns and the teacher's "
      << teacher.cols;
  CHECK(args.temperature > 0) << args.temperature;
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    T* softened = Scratch<T>(ScratchSlot::kProbabilities, args.vocab_size);
    T* teacher_softened = Scratch<T>(ScratchSlot::kMoreProbabilities, args.vocab_size);
    for (int64_t i = begin; i < end; ++i) {
      CHECK(targets[i] >= -1 && targets[i] < args.vocab_size)
          << "target " << targets[i] << " of a vocabulary of " << args.vocab_size;
      const TokenLosses<T> token = DistillationRow(args, logits.row(i), cols, teacher.row(i),
                                                   targets[i], softened, teacher_softened);
      losses[i] = token.cross_entropy;
      divergences[i] = token.divergence;
    }
  });
}

}  // namespace

void CpuBackend::DistillationLoss(const DistillationLossArgs& args, Stream&) {
  DispatchFloat(args.logits.dtype(), [&](auto t) { DistillationLossOf<decltype(t)>(args); });
}

}  // namespace filigree
