// A parameter: one trainable array, its logical shape and the layout of what is stored of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/sparse/layout.h"

namespace filigree {

enum class InitKind { kNormal, kZeros, kOnes, kUniform };

// Low-rank factors A [r, in] and B [out, r] of a linear NAME are its parameters NAME.low_rank_a and
// NAME.low_rank_b.
enum class FactorKind {
  kNone,       // the linear has none
  kLowRank,    // W = scale * B A + the stored cells of NAME.weight, if there is such a parameter
  kNonlinear,  // y = B silu(A x): no weight expresses it
};

// Names are neutral between model families and shown to users: "embedding.weight",
// "position_embedding.weight", "layers.3.attention_norm.weight",
// "layers.3.attention.{q,k,v,o}.weight", "layers.3.mlp_norm.weight",
// "layers.3.mlp.{gate,up,down}.weight", "final_norm.weight", "head.weight", ".bias" beside any of
// them, and ".low_rank_a", ".low_rank_b" beside or instead of a layer's ".weight".
struct Parameter {
  std::string name;
  // Logical shape: [n] or [out, in]. Vocabulary matrices are logically [V, D].
  std::vector<int64_t> shape;
  // Which cells are stored; dense unless a parameterisation says otherwise. [n] is seen as [1, n].
  SparseLayout layout;
  // Elements of the segment beyond the layout's stored cells: rows that pad the vocabulary or,
  // where the device asks for it, the feed-forward's width. They follow the stored ones, start at
  // zero and stay there.
  int64_t padding_count = 0;
  // Decoupled weight decay touches matrices only.
  bool decay = false;
  // Attention and feed-forward matrices: what `sparsity` in configs, logs and metrics is counted
  // over.
  bool sparsifiable = false;
  // Linears of one input (q, k and v) are one product: its number, which is the place of its first
  // parameter. -1: of none.
  int product = -1;
  InitKind init = InitKind::kNormal;
  double init_std = 0.02;  // of kNormal, and of kUniform: U(-b, b) with b = sqrt(3) * init_std
  // Of a low-rank factor: what it is part of, and the scale of B A.
  FactorKind factor = FactorKind::kNone;
  double factor_scale = 1;
  // Where set, gives all logical cells at once, a function of the seed, instead of `init`.
  std::function<std::vector<float>(uint64_t seed)> initial = nullptr;

  int64_t logical_count() const {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    return count;
  }
  int64_t segment_count() const { return layout.stored_count() + padding_count; }
};

// What a parameter starts from, by logical index: a pure function of (seed, name, index), so it is
// the same for any layout, parameterisation and number of ranks.
class InitialValues {
 public:
  InitialValues(const Parameter& parameter, uint64_t seed);
  double operator[](int64_t logical_index) const;
  // Whether they are drawn, and how; the others are all the same.
  bool drawn() const { return drawn_; }
  const CellDraw& draw() const { return draw_; }

 private:
  bool drawn_ = false;
  double constant_ = 0;
  CellDraw draw_;
};

}  // namespace filigree
