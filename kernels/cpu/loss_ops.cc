#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/wide_grad.h"

namespace filigree {
namespace {

template <typename T>
void EmbeddingOf(const EmbeddingArgs& args) {
  const int64_t rows = args.out.rows(), cols = args.out.cols();
  const int32_t* tokens = AsVector<int32_t>(args.tokens, rows, "tokens");
  const auto table = AsMatrix<T>(args.table, args.table.rows(), cols, "table");
  const auto out = AsMatrix<T>(args.out, rows, cols, "out");
  const bool positional = !args.positions.empty();
  const auto positions = positional
                             ? AsMatrix<T>(args.positions, args.positions.rows(), cols, "positions")
                             : Matrix<const T>();
  CHECK(!positional || (args.seq_len >= 1 && args.seq_len <= positions.rows))
      << "sequences of " << args.seq_len << " with " << positions.rows << " positions";
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      CHECK(tokens[i] >= 0 && tokens[i] < table.rows)
          << "token " << tokens[i] << " of a table of " << table.rows;
      const T* row = table.row(tokens[i]);
      if (positional) {
        Simd<T>().add(row, positions.row(i % args.seq_len), out.row(i), cols);
      } else {
        std::copy(row, row + cols, out.row(i));
      }
    }
  });
}

// Threads divide the columns, so that each row of the table is summed in the order of the tokens.
template <typename T>
void EmbeddingBackwardOf(const EmbeddingBackwardArgs& args) {
  const int64_t rows = args.dout.rows(), cols = args.dout.cols();
  const int32_t* tokens = AsVector<int32_t>(args.tokens, rows, "tokens");
  const auto dout = AsMatrix<T>(args.dout, rows, cols, "dout");
  const auto dtable = AsMatrix<T>(args.dtable, args.dtable.rows(), cols, "dtable");
  const bool positional = !args.dpositions.empty();
  const auto dpositions =
      positional ? AsMatrix<T>(args.dpositions, args.dpositions.rows(), cols, "dpositions")
                 : Matrix<T>();
  CHECK(!positional || (args.seq_len >= 1 && args.seq_len <= dpositions.rows))
      << "sequences of " << args.seq_len << " with " << dpositions.rows << " positions";
  const int64_t grain = std::max<int64_t>(64, RowGrain(rows));
  ParallelFor(cols, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < rows; ++i) {
      CHECK(tokens[i] >= 0 && tokens[i] < dtable.rows)
          << "token " << tokens[i] << " of a table of " << dtable.rows;
      const T* from = dout.row(i) + begin;
      T* to = dtable.row(tokens[i]) + begin;
      Simd<T>().add(to, from, to, end - begin);
      if (!positional) continue;
      T* position = dpositions.row(i % args.seq_len) + begin;
      Simd<T>().add(position, from, position, end - begin);
    }
  });
}

// The loss of one row; the row becomes its gradient unless loss_scale is zero.
template <typename T>
T CrossEntropyRow(T* logits, int64_t target, int64_t vocab_size, int64_t cols, T loss_scale) {
  if (target == -1) {
    if (loss_scale != T(0)) std::fill(logits, logits + cols, T(0));
    return T(0);
  }
  const auto& simd = Simd<T>();
  const T max = simd.max(logits, vocab_size);
  const T target_logit = logits[target];
  const bool keep = loss_scale != T(0);
  const T sum = simd.exp_sum(logits, T(1), max, keep ? logits : nullptr, vocab_size);
  if (keep) {
    simd.scale(logits, loss_scale / sum, vocab_size);
    logits[target] -= loss_scale;
    std::fill(logits + vocab_size, logits + cols, T(0));
  }
  return std::log(sum) + max - target_logit;
}

template <typename T>
void CrossEntropyOf(const CrossEntropyArgs& args) {
  const int64_t rows = args.logits.rows(), cols = args.logits.cols();
  const auto logits = AsMatrix<T>(args.logits, rows, cols, "logits");
  const int32_t* targets = AsVector<int32_t>(args.targets, rows, "targets");
  T* losses = AsVector<T>(args.losses, rows, "losses");
  CHECK(args.vocab_size >= 1 && args.vocab_size <= cols)
      << "vocabulary of " << args.vocab_size << " in " << cols << " columns";
  T loss_scale = static_cast<T>(args.loss_scale);
  if (loss_scale != T(0) && !args.loss_scale_on_device.empty()) {
    loss_scale = static_cast<T>(*AsVector<float>(args.loss_scale_on_device, 1, "loss scale"));
  }
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      CHECK(targets[i] >= -1 && targets[i] < args.vocab_size)
          << "target " << targets[i] << " of a vocabulary of " << args.vocab_size;
      losses[i] = CrossEntropyRow(logits.row(i), targets[i], args.vocab_size, cols, loss_scale);
    }
  });
}

}  // namespace

void CpuBackend::Embedding(const EmbeddingArgs& args, Stream&) {
  DispatchFloat(args.out.dtype(), [&](auto t) { EmbeddingOf<decltype(t)>(args); });
}
void CpuBackend::EmbeddingBackward(const EmbeddingBackwardArgs& args, Stream&) {
  const WideGrad dtable(args.dtable), dpositions(args.dpositions, ScratchSlot::kMoreWideGrad);
  EmbeddingBackwardArgs wide = args;
  wide.dtable = dtable.view();
  wide.dpositions = dpositions.view();
  DispatchFloat(args.dout.dtype(), [&](auto t) { EmbeddingBackwardOf<decltype(t)>(wide); });
}
void CpuBackend::CrossEntropy(const CrossEntropyArgs& args, Stream&) {
  DispatchFloat(args.logits.dtype(), [&](auto t) { CrossEntropyOf<decltype(t)>(args); });
}

}  // namespace filigree
