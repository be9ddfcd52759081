// The parameters of a model under construction, and their memory and hooks once it runs.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/parameter.h"

namespace filigree {

class ParameterTable {
 public:
  // Returns the parameter's index: creation order is the order of segments.
  int Add(Parameter parameter);
  const std::vector<Parameter>& parameters() const { return parameters_; }

  void Bind(const FlatBuffer& buffer);
  const BoundParameter& bound(int index) const { return bound_[index]; }

  void set_hooks(ParameterHooks hooks) { hooks_ = std::move(hooks); }
  // All values were written from outside: each is announced again before its next use.
  void ValuesChanged() { stale_.assign(parameters_.size(), true); }
  // Until EndOverwrite the first contribution to every gradient overwrites it, and BoundParameter
  // says so to whoever makes it.
  void StartOverwrite() { overwrite_ = true; }
  void EndOverwrite() { overwrite_ = false; }

  // What the next pass does for all parameters alike; nothing where the values of some are new.
  std::optional<PassState> NextPass() const;
  // As Model's.
  void SetNextPass(const PassState& state) {
    stale_.assign(parameters_.size(), state.materialises);
    overwrite_ = state.overwrites;
  }
  // A pass over all parameters was done without this table.
  void PassWasReplayed();

  // Call before a parameter is read. True where its values changed since the last call.
  bool Use(int index);
  // Call when backward has added its last contribution to a parameter's gradient.
  void GradReady(int index) {
    if (hooks_.grad_ready) hooks_.grad_ready(index);
  }

 private:
  std::vector<Parameter> parameters_;
  std::vector<BoundParameter> bound_;
  std::vector<bool> stale_;
  bool overwrite_ = false;
  ParameterHooks hooks_;
};

// A LinearGroup whose parameters live in a table.
class TableLinear {
 public:
  // Makes the parts with the parameterisation that `sparsity` gives each, over the layout in
  // `layouts` where there is one, else over one drawn from `seed`. Adds their parameters to
  // `table`, which must outlive this.
  TableLinear(const std::vector<LinearSpec>& parts, const std::vector<SparsitySpec>& sparsity,
              uint64_t seed, const std::map<std::string, SparseLayout>& layouts, Backend& backend,
              ParameterTable& table);

  const LinearGroup& group() const { return group_; }
  // As LinearGroup's, where the table's parameters lie as `layout` says.
  LinearMemory memory(DType compute_dtype, const FlatLayout& layout) const {
    return group_.memory(compute_dtype, BiasesAdjacent(layout));
  }
  PreparedLayout::StepUse step_use(int64_t tokens, const FlatLayout& layout) const {
    return group_.step_use(tokens, BiasesAdjacent(layout));
  }
  void Bind(TensorView scratch);
  // As LinearGroup's.
  BoundParameter ReleaseBiasGrad() { return group_.ReleaseBiasGrad(); }
  // As Model's: takes what is there for its parts.
  void CollectStatistics(const std::map<std::string, LinearStatistics>& statistics);
  void Forward(ConstTensorView x, TensorView y, TensorView inner, const ProductEpilogue& epilogue,
               Stream& stream);
  // Afterwards the gradients of these parameters are final for the micro-batch.
  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                const InputGrad& input_grad, Stream& stream);

 private:
  // Whether the parts' biases lie one after the other.
  bool BiasesAdjacent(const FlatLayout& layout) const;

  ParameterTable& table_;
  LinearGroup group_;
  int first_ = 0, count_ = 0;  // the group's parameters in the table
};

}  // namespace filigree
