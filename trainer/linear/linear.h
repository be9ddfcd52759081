// A linear map y = x W^T + bias whose weight W [out, in] is stored in some parameterisation.
//
// The model sees only this interface; optimizer, exchange and checkpoints see only the parameters.
// To add a parameterisation: one file here and one row in registry.cc; the tests loop over the
// registry.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/math.h"
#include "kernels/base/status.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// What a model asks for.
struct LinearSpec {
  // "layers.3.attention.q"; parameters are name + ".weight", ".low_rank_a", ".low_rank_b", ".bias",
  // as far as the parameterisation has them, in this order.
  std::string name;
  int64_t out = 0, in = 0;
  bool bias = false;
  double init_std = 0.02;
  // Multiples that the columns of y and x are rounded up to (Device::row_alignment). The columns
  // beyond out and in are padding: always zero, in activations and in their gradients.
  int64_t out_alignment = 1, in_alignment = 1;

  int64_t padded_out() const { return AlignUp(out, out_alignment); }
  int64_t padded_in() const { return AlignUp(in, in_alignment); }
  // The same for a linear that does not pad.
  LinearSpec WithoutPadding() const {
    LinearSpec spec = *this;
    spec.out_alignment = spec.in_alignment = 1;
    return spec;
  }
};

// A parameter's memory in the flat buffers.
struct BoundParameter {
  TensorView values;  // [segment_count], compute dtype
  TensorView grads;   // [segment_count], gradient dtype
  // The model's word on gradients, read at each backward pass: the first contribution overwrites
  // them, whatever they hold. Null: always added.
  const bool* overwrite = nullptr;

  bool adds() const { return overwrite == nullptr || !*overwrite; }
};

// Where the gradient of a linear's input goes: dx [T, in] (+)= dy W, times gelu'(gelu_input) if
// that is given; or, where the input was made by SwiGLU, dx becomes the gate's gradient and
// swiglu.dup the other's. An empty dx is not computed. `column_sums` [in], where given, receives
// dx's sums over rows: the gradient of the bias that was added in making the linear's input.
struct InputGrad {
  TensorView dx;
  bool accumulate = false;
  ConstTensorView gelu_input = {};
  SwiGluGradient swiglu = {};
  TensorView column_sums = {};
  bool accumulate_sums = true;

  // What the product that makes dx is to do with it.
  ProductEpilogue epilogue() const {
    return {.gelu_input = gelu_input,
            .swiglu = swiglu,
            .column_sums = column_sums,
            .accumulate_sums = accumulate_sums};
  }
};

// Floating-point operations per token of one forward pass; a training step takes three times as
// many (forward, input gradient, weight gradient). See ARCHITECTURE.md, "Names", for the three
// kinds.
struct LinearFlops {
  static constexpr double kPasses = 3;  // of a training step
  double dense_equivalent = 0, method = 0, executed = 0;
  LinearFlops Scaled(double factor) const {
    return {dense_equivalent * factor, method * factor, executed * factor};
  }
};

// Memory beyond values, gradients and optimizer state.
struct LinearMemory {
  int64_t layout_bytes = 0;        // indices
  int64_t compute_copy_bytes = 0;  // expanded weights that compute reads
  int64_t scratch_bytes = 0;       // of one forward or backward; shared by all groups (maximum)
};

// What a linear computes between its factors, [T, inner_width()]; empty where it has none.
struct InnerActivations {
  ConstTensorView values;  // as Forward left them
  TensorView grads;        // memory for Backward
};

struct DenseProduct;
class FormedProduct;
class FormedWeight;
class LowRankFactors;
class LowRankGroup;

// A linear that is one product with a blocked weight, and maybe with factors beside it, as a group
// joins it to its neighbours.
struct BlockedProduct {
  const PreparedLayout* weight = nullptr;
  BoundParameter values;  // and gradients, [stored_count]
  BoundParameter bias;    // [out], or empty views
  const LowRankFactors* factors = nullptr;
};

// A linear that is one product with a dense weight as it is stored (dense_product.h).
struct DensePart {
  const DenseProduct* product = nullptr;
  BoundParameter bias;  // [padded out], or empty views
};

// A linear that is one product with a dense weight formed before it (formed_product.h).
struct FormedPart {
  FormedWeight* weight = nullptr;
  BoundParameter bias;  // [padded out], or empty views
};

class Linear {
 public:
  virtual ~Linear() = default;

  // In creation order: what the flat buffers must hold. Layouts are already drawn.
  virtual std::vector<Parameter> Parameters() const = 0;
  // Gives the linear its memory: `parameters` in the order of Parameters(), `scratch` of at least
  // memory().scratch_bytes, both outliving the linear's use.
  virtual void Bind(std::span<const BoundParameter> parameters, TensorView scratch) = 0;

  // Values -> what compute reads. Call after every change of the values, before Forward.
  virtual void Materialize(Stream& stream) = 0;
  // Whether Forward and Backward take views that are padded_out() and padded_in() wide and leave
  // padding zero where it was zero, as a product with padded weights does. Else views are out and
  // in wide, and the group sees to the padding.
  virtual bool pads() const { return false; }
  // Columns of the activations between factors, kept for Backward; 0 where there are none.
  virtual int64_t inner_width() const { return 0; }
  // y [T, out] = x [T, in] W^T + bias, then `epilogue` (residual, pre_activation). Writes `inner`
  // [T, inner_width()]. Views may be strided.
  virtual void Forward(ConstTensorView x, TensorView y, TensorView inner,
                       const ProductEpilogue& epilogue, Stream& stream) = 0;
  // From now on someone else writes the bias's gradient, with another pass over dy, and Backward
  // leaves it alone. Empty, and nothing changed, where there is no bias. Valid after Bind, until
  // the next.
  virtual BoundParameter ReleaseBiasGrad() = 0;
  // Adds the gradients of all parameters into grads, or overwrites them where
  // BoundParameter::adds() is false, and computes the input's.
  virtual void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                        const InputGrad& input_grad, Stream& stream) = 0;

  // Set where the linear is nothing but that product; valid after Bind.
  virtual std::optional<BlockedProduct> blocked_product() const { return std::nullopt; }
  virtual std::optional<DensePart> dense_part() const { return std::nullopt; }
  virtual std::optional<FormedPart> formed_part() { return std::nullopt; }

  virtual LinearFlops flops() const = 0;
  virtual LinearMemory memory(DType compute_dtype) const = 0;
};

// What a weight stores, and its sparsity counts.
enum class StoredUnits {
  kCells,       // single weights
  kBlocks,      // blocks of block_out x block_in
  kSparsePart,  // either, as the entry's sparse_part says
};

// One row of the registry.
struct Parameterisation {
  std::string_view name;
  std::string_view summary;
  // Whether compute runs over the stored values alone; else over the whole weight.
  bool computes_stored;
  // Problems of this spec for a weight [out, in] ("sparsity 0.999 leaves no block of ..."), or OK.
  Status (*validate)(const LinearSpec& linear, const SparsitySpec& sparsity);
  // The initial layout of the weight: a pure function of its arguments. Dense where nothing is
  // sparse, of nothing ([0, 0]) where no parameter NAME.weight is stored.
  SparseLayout (*draw_layout)(const LinearSpec& linear, const SparsitySpec& sparsity,
                              uint64_t seed);
  // A linear over a given layout (drawn, or read from a checkpoint).
  std::unique_ptr<Linear> (*create)(const LinearSpec& linear, const SparsitySpec& sparsity,
                                    SparseLayout layout, Backend& backend);
  // The low-rank factors that it has, of SparsitySpec::rank.
  FactorKind factors = FactorKind::kNone;
  // Whether a parameter NAME.weight is stored (beside the factors, if there are any).
  bool has_weight = true;
  StoredUnits units = StoredUnits::kCells;
  // Whether topology rules may choose which units live; else the layout stays as it was drawn.
  bool movable = false;
  // Whether it is the weight itself, every cell stored and nothing else: what a weight is that no
  // sparsity entry matches.
  bool dense = false;
};

// All rows, and one by name (nullptr where there is none).
std::span<const Parameterisation> Parameterisations();
const Parameterisation* FindParameterisation(std::string_view name);
// The row of a validated entry.
const Parameterisation& RowOf(const SparsitySpec& sparsity);

// The first entry of `sparsity` whose patterns match the weight's name; a dense spec where none
// does.
SparsitySpec MatchSparsity(std::string_view weight_name, const std::vector<SparsitySpec>& sparsity);

// The inputs' second moments in some columns: gram [n, n] F32 += x^T x of columns
// [begin, begin + n).
struct InputGram {
  int64_t begin = 0;
  TensorView gram;
};

// What criteria of topology rules, and of pruning, need beyond stored gradients; backward adds to
// it where given.
struct LinearStatistics {
  TensorView dense_grads;                        // dy^T x [out, in], gradient dtype
  std::vector<double>* input_squares = nullptr;  // sum over rows of x_j^2 [in]
  std::vector<InputGram> input_grams = {};
};

// A sequence of linears that share their input (q, k, v; gate, up): y's columns are the parts'
// outputs side by side, each with its padding, dx is the sum of the parts'. Topology, checkpoints
// and export see only the parts.
// Where all parts are products with formed weights they are computed as one; where all are blocked
// products, all with factors beside them or none, too, if the backend gains by it, and so are dense
// weights that lie one after the other in the flat buffer, as they do within a bucket.
class LinearGroup {
 public:
  // `specs` are what the parts were made for.
  LinearGroup(std::vector<std::unique_ptr<Linear>> parts, std::vector<LinearSpec> specs,
              Backend& backend);
  LinearGroup(LinearGroup&&) noexcept;
  ~LinearGroup();

  // Columns of y, padding included.
  int64_t out() const { return offsets_.back(); }
  // The columns of part i in a [T, out()] view, without and with their padding.
  template <typename View>
  View Part(View y, int i) const {
    return y.empty() ? y : y.Cols(offsets_[i], specs_[i].out);
  }
  template <typename View>
  View PaddedPart(View y, int i) const {
    return y.empty() ? y : y.Cols(offsets_[i], specs_[i].padded_out());
  }
  std::span<const std::unique_ptr<Linear>> parts() const { return parts_; }
  // The parts' inner activations lie side by side too.
  int64_t inner_width() const { return inner_offsets_.back(); }
  // Whether the parts have biases, and where that of part i begins in the parts' biases as one.
  bool has_bias() const { return specs_.front().bias; }
  int64_t bias_begin(int i) const { return offsets_[i]; }
  // The parts' together; scratch is that of one forward or backward. `biases_adjacent`: the flat
  // buffer has the parts' biases one after the other, as bias_begin says.
  LinearMemory memory(DType compute_dtype, bool biases_adjacent) const;
  // Of the products with the parts' blocked weights: what they hold together, the scratch of one.
  PreparedLayout::StepUse step_use(int64_t tokens, bool biases_adjacent) const;

  // Call once the parts are bound. `scratch` is what they were given.
  void JoinParts(TensorView scratch);
  // As Linear's, of a group of one.
  BoundParameter ReleaseBiasGrad() {
    return parts_.size() == 1 ? parts_[0]->ReleaseBiasGrad() : BoundParameter();
  }
  void Materialize(Stream& stream);
  // As Linear's, over the parts; of two that are gate and up epilogue.swiglu_output too, of their
  // outputs with padding.
  void Forward(ConstTensorView x, TensorView y, TensorView inner, const ProductEpilogue& epilogue,
               Stream& stream);
  void Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                const InputGrad& input_grad, Stream& stream);
  // From now on every Backward also adds to `statistics`, one for each part (none: no more).
  void Collect(std::vector<LinearStatistics> statistics) { statistics_ = std::move(statistics); }

 private:
  // The parts' weights where all are formed, alike and of one width; else none.
  std::vector<FormedWeight*> FormedWeights() const;
  // Whether these are one product.
  bool JoinsFormed() const;
  // Blocked parts as the one product that they would be where their values lie one after the other;
  // nullptr where they would not.
  std::unique_ptr<PreparedLayout> JoinedBlocks() const;
  bool JoinBlocked();
  void JoinFormed(TensorView scratch);
  bool JoinDense();
  // Takes the parts' biases for one.
  void JoinBiases(std::vector<BoundParameter> biases, DType dtype);
  void BackwardBiases(ConstTensorView dy, Stream& stream);
  void AddStatistics(ConstTensorView x, ConstTensorView dy, Stream& stream);
  template <typename View>
  View InnerPart(View inner, int i) const {
    const int64_t width = inner_offsets_[i + 1] - inner_offsets_[i];
    return width == 0 ? View() : inner.Cols(inner_offsets_[i], width);
  }
  void ForwardJoined(ConstTensorView x, TensorView y, TensorView inner,
                     const ProductEpilogue& epilogue, Stream& stream);
  void BackwardJoined(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                      const InputGrad& input_grad, Stream& stream);
  // What part i takes of the group's views, and zeroes for what it leaves of an output's padding.
  template <typename View>
  View InputOf(View x, int i) const {
    return x.empty() || parts_[i]->pads() ? x : x.Cols(0, specs_[i].in);
  }
  template <typename View>
  View OutputOf(View y, int i) const {
    return parts_[i]->pads() ? PaddedPart(y, i) : Part(y, i);
  }
  void PadOutput(TensorView y, int i, Stream& stream);
  void PadInputGrad(const InputGrad& input_grad, int i, Stream& stream);
  // Whether the one part takes the whole of dx and its sums.
  bool SumsInputGrad() const { return parts_.size() == 1 && specs_[0].padded_in() == specs_[0].in; }

  std::vector<std::unique_ptr<Linear>> parts_;
  std::vector<LinearSpec> specs_;
  std::vector<int64_t> offsets_, inner_offsets_;  // parts + 1
  std::vector<LinearStatistics> statistics_;
  Backend& backend_;
  // The parts as one product; nullptr where they are computed one by one.
  std::unique_ptr<PreparedLayout> joined_;
  std::vector<BlockedProduct> products_;
  std::unique_ptr<LowRankGroup> factors_;               // beside them, or none
  std::vector<ConstTensorView> factors_a_, factors_b_;  // the same
  TensorView joined_values_, joined_grads_;
  std::unique_ptr<FormedProduct> formed_;  // or this
  std::unique_ptr<DenseProduct> dense_;    // or this
  std::vector<BoundParameter> biases_;     // of the parts, where they are joined and have some
  // The parts' as one, one after the other: where the flat buffer has them so, else a copy.
  TensorView bias_;
  DeviceBuffer joined_bias_;
  TensorView bias_grads_;  // empty where the flat buffer does not have them so
};

}  // namespace filigree
