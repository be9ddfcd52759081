// The decoder of both families: embedding, layers, final norm, head.
#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/model/decoder_layer.h"
#include "trainer/model/model.h"
#include "trainer/model/vocabulary.h"

namespace filigree {
namespace {

// All activations of a pass over T tokens.
struct Activations {
  std::vector<TensorView>
      stream;  // the residual stream before each layer, and after the last [T, D]
  std::vector<LayerActivations> layers;  // with shared parts where a recompute level shares them
  NormStatistics final_statistics;
  TensorView final_norm;                  // [T, D]
  TensorView logits;                      // [chunk rows, Vp]
  TensorView dx, dfinal;                  // gradients of the stream and of final_norm [T, D]
  std::vector<LayerGradients> gradients;  // one a layer, over the same memory
};

class Decoder final : public Model {
 public:
  Decoder(const ModelSpec& spec, const std::vector<SparsitySpec>& sparsity, uint64_t seed,
          const std::map<std::string, SparseLayout>& layouts, Backend& backend)
      : spec_(spec),
        backend_(backend),
        embedding_(spec_, backend, table_),
        layers_(MakeLayers(sparsity, seed, layouts)),
        final_norm_(spec_, "final_norm", backend, table_),
        head_(spec_, embedding_.table_index(), backend, table_),
        arena_(backend.device().compute_dtype()) {}

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<Parameter>& parameters() const override { return table_.parameters(); }
  std::vector<const Linear*> linears() const override;
  void Bind(FlatBuffer& buffer) override;
  LinearMemory linear_memory(const FlatLayout& layout) const override;
  PreparedLayout::StepUse linear_step_use(int64_t tokens, const FlatLayout& layout) const override;
  size_t ActivationBytes(int64_t sequences, int64_t seq_len, bool training) const override;
  void ReserveActivations(int64_t sequences, int64_t seq_len, bool training) override;
  void set_hooks(ParameterHooks hooks) override { table_.set_hooks(std::move(hooks)); }
  void ReleaseActivations() override { arena_ = ActivationArena(arena_.dtype()); }
  void CollectStatistics(const std::map<std::string, LinearStatistics>& statistics) override {
    collects_ = !statistics.empty();
    for (const auto& layer : layers_) {
      for (TableLinear* linear : layer->linears()) linear->CollectStatistics(statistics);
    }
  }
  void ValuesChanged() override { table_.ValuesChanged(); }
  void StartGradients() override { table_.StartOverwrite(); }
  void ForwardLoss(const MicroBatch& batch, TensorView losses, Stream& stream) override;
  void ForwardBackward(const MicroBatch& batch, double loss_scale, TensorView losses,
                       Stream& stream) override;
  std::optional<PassState> NextPass() const override {
    return collects_ ? std::nullopt : table_.NextPass();
  }
  void SetNextPass(const PassState& state) override { table_.SetNextPass(state); }
  void PassWasReplayed() override { table_.PassWasReplayed(); }
  void ForwardHidden(const MicroBatch& batch, Stream& stream) override;
  int64_t MaxLogitRows() const override { return hidden_logits_.rows(); }
  ConstTensorView HiddenLogits(int64_t begin, int64_t rows, Stream& stream) override;
  ConstTensorView Logits(const MicroBatch& batch, Stream& stream) override;

 private:
  std::vector<std::unique_ptr<DecoderLayer>> MakeLayers(
      const std::vector<SparsitySpec>& sparsity, uint64_t seed,
      const std::map<std::string, SparseLayout>& layouts);
  Activations LayOut(ActivationArena& arena, int64_t tokens, int64_t seq_len, bool training) const;
  void LayOutLayers(ActivationArena& arena, int64_t tokens, bool training, Activations* a) const;
  // [tokens, width] where that is anything; layers may differ in what is between their factors.
  void LayOutInner(ActivationArena& arena, int64_t tokens, int64_t width, TensorView* inner) const;
  int64_t Widest(int64_t (DecoderLayer::*width)() const) const;
  // Runs everything up to final_norm.
  Activations Forward(const MicroBatch& batch, bool training, Stream& stream);
  void Backward(const MicroBatch& batch, const Activations& a, Stream& stream);

  const ModelSpec spec_;
  Backend& backend_;
  ParameterTable table_;
  EmbeddingModule embedding_;
  std::vector<std::unique_ptr<DecoderLayer>> layers_;
  Norm final_norm_;
  HeadModule head_;
  ActivationArena arena_;
  DeviceBuffer scratch_;               // of the linears' backward
  bool collects_ = false;              // statistics
  TensorView hidden_, hidden_logits_;  // of ForwardHidden: [T, D], [chunk rows, Vp]
};

std::vector<std::unique_ptr<DecoderLayer>> Decoder::MakeLayers(
    const std::vector<SparsitySpec>& sparsity, uint64_t seed,
    const std::map<std::string, SparseLayout>& layouts) {
  std::vector<std::unique_ptr<DecoderLayer>> layers;
  for (int64_t layer = 0; layer < spec_.layers; ++layer) {
    layers.push_back(
        std::make_unique<DecoderLayer>(spec_, layer, sparsity, seed, layouts, backend_, table_));
  }
  return layers;
}

std::vector<const Linear*> Decoder::linears() const {
  std::vector<const Linear*> all;
  for (const auto& layer : layers_) {
    for (const Linear* linear : layer->parts()) all.push_back(linear);
  }
  return all;
}

void Decoder::Bind(FlatBuffer& buffer) {
  const DType dtype = backend_.device().compute_dtype();
  CHECK(buffer.values().dtype() == dtype) << NameOf(buffer.values().dtype());
  table_.Bind(buffer);
  const int64_t scratch_bytes =
      buffer.grads().data() != nullptr ? linear_memory(buffer.layout()).scratch_bytes : 0;
  TensorView scratch;
  if (scratch_bytes > 0) {
    scratch_ = backend_.device().Allocate(scratch_bytes, "scratch");
    scratch = scratch_.View(dtype, scratch_bytes / static_cast<int64_t>(SizeOf(dtype)));
  }
  for (const auto& layer : layers_) {
    for (TableLinear* linear : layer->linears()) linear->Bind(scratch);
    layer->ReleaseBiasGrads();
  }
}

LinearMemory Decoder::linear_memory(const FlatLayout& layout) const {
  LinearMemory all;
  for (const auto& layer : layers_) {
    for (const TableLinear* linear : layer->linears()) {
      const LinearMemory memory = linear->memory(backend_.device().compute_dtype(), layout);
      all.layout_bytes += memory.layout_bytes;
      all.compute_copy_bytes += memory.compute_copy_bytes;
      all.scratch_bytes = std::max(all.scratch_bytes, memory.scratch_bytes);
    }
  }
  return all;
}

PreparedLayout::StepUse Decoder::linear_step_use(int64_t tokens, const FlatLayout& layout) const {
  PreparedLayout::StepUse all;
  for (const auto& layer : layers_) {
    for (const TableLinear* linear : layer->linears()) {
      const PreparedLayout::StepUse use = linear->step_use(tokens, layout);
      all.held_bytes += use.held_bytes;
      all.scratch_bytes = std::max(all.scratch_bytes, use.scratch_bytes);
    }
  }
  return all;
}

int64_t Decoder::Widest(int64_t (DecoderLayer::*width)() const) const {
  int64_t widest = 0;
  for (const auto& layer : layers_) widest = std::max(widest, (*layer.*width)());
  return widest;
}

void Decoder::LayOutInner(ActivationArena& arena, int64_t tokens, int64_t width,
                          TensorView* inner) const {
  if (width > 0) *inner = arena.Matrix(tokens, width);
}

// Which layers share what: NONE nothing; ACTIVATIONS what is cheap to compute again; LAYER, and
// inference, everything but the residual stream.
void Decoder::LayOutLayers(ActivationArena& arena, int64_t tokens, bool training,
                           Activations* a) const {
  using Part = DecoderLayer::Part;
  const Recompute recompute = training ? spec_.recompute : Recompute::kLayer;
  a->layers.resize(layers_.size());
  if (recompute != Recompute::kNone) {
    const Part part = recompute == Recompute::kLayer ? Part::kAll : Part::kRecomputed;
    arena.Share(layers_.size(),
                [&](size_t i) { layers_[i]->LayOut(arena, tokens, part, &a->layers[i]); });
  }
  TensorView shared_inner;
  if (recompute == Recompute::kLayer) {
    LayOutInner(arena, tokens, Widest(&DecoderLayer::inner_width), &shared_inner);
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DecoderLayer& layer = *layers_[i];
    LayerActivations& own = a->layers[i];
    own.inner = shared_inner;
    if (recompute == Recompute::kNone) layer.LayOut(arena, tokens, Part::kAll, &own);
    if (recompute == Recompute::kActivations) layer.LayOut(arena, tokens, Part::kKept, &own);
    if (recompute != Recompute::kLayer) LayOutInner(arena, tokens, layer.inner_width(), &own.inner);
  }
}

Activations Decoder::LayOut(ActivationArena& arena, int64_t tokens, int64_t seq_len,
                            bool training) const {
  arena.Restart();
  Activations a;
  // In inference two buffers take turns as the residual stream.
  const int64_t streams = training ? spec_.layers + 1 : 2;
  std::vector<TensorView> stream;
  for (int64_t i = 0; i < streams; ++i) stream.push_back(arena.Matrix(tokens, spec_.width));
  for (int64_t i = 0; i <= spec_.layers; ++i) a.stream.push_back(stream[i % streams]);
  LayOutLayers(arena, tokens, training, &a);
  a.final_statistics = final_norm_.LayOut(arena, tokens);
  a.final_norm = arena.Matrix(tokens, spec_.width);
  a.logits = arena.Matrix(head_.ChunkRows(tokens, seq_len), spec_.padded_vocab_size);
  if (!training) return a;
  a.dx = arena.Matrix(tokens, spec_.width);
  a.dfinal = arena.Matrix(tokens, spec_.width);
  a.gradients.resize(layers_.size());
  arena.Share(layers_.size(),
              [&](size_t i) { a.gradients[i] = layers_[i]->LayOutGradients(arena, tokens); });
  TensorView inner;
  LayOutInner(arena, tokens, Widest(&DecoderLayer::inner_grad_width), &inner);
  for (LayerGradients& gradients : a.gradients) gradients.inner = inner;
  return a;
}

size_t Decoder::ActivationBytes(int64_t sequences, int64_t seq_len, bool training) const {
  ActivationArena measuring(arena_.dtype());
  LayOut(measuring, sequences * seq_len, seq_len, training);
  return measuring.used_bytes();
}

void Decoder::ReserveActivations(int64_t sequences, int64_t seq_len, bool training) {
  arena_ = ActivationArena(arena_.dtype());
  LayOut(arena_, sequences * seq_len, seq_len, training);
  arena_.Allocate(backend_.device());
}

Activations Decoder::Forward(const MicroBatch& batch, bool training, Stream& stream) {
  const int64_t tokens = batch.tokens.size();
  CHECK(tokens > 0 && tokens % batch.seq_len == 0) << tokens << " tokens of " << batch.seq_len;
  CHECK_LE(batch.seq_len, spec_.max_positions);
  const Activations a = LayOut(arena_, tokens, batch.seq_len, training);
  embedding_.Forward(batch, a.stream[0], stream);
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->Forward(a.stream[i], a.stream[i + 1], a.layers[i], batch.seq_len, stream);
  }
  final_norm_.Forward(a.stream.back(), a.final_norm, a.final_statistics, stream);
  return a;
}

void Decoder::ForwardLoss(const MicroBatch& batch, TensorView losses, Stream& stream) {
  const Activations a = Forward(batch, /*training=*/false, stream);
  head_.Loss(a.final_norm, batch, /*loss_scale=*/0, a.logits, losses, TensorView(), stream);
}

void Decoder::ForwardBackward(const MicroBatch& batch, double loss_scale, TensorView losses,
                              Stream& stream) {
  CHECK(loss_scale != 0) << "nothing to differentiate";
  const Activations a = Forward(batch, /*training=*/true, stream);
  head_.Loss(a.final_norm, batch, loss_scale, a.logits, losses, a.dfinal, stream);
  Backward(batch, a, stream);
  table_.EndOverwrite();
}

void Decoder::Backward(const MicroBatch& batch, const Activations& a, Stream& stream) {
  backend_.device().ZeroAsync(a.dx, stream);
  final_norm_.Backward(a.stream.back(), a.dfinal, a.dx, a.final_statistics,
                       layers_.back()->output_bias(), stream);
  for (size_t i = layers_.size(); i-- > 0;) {
    DecoderLayer& layer = *layers_[i];
    if (spec_.recompute == Recompute::kActivations) {
      layer.Recompute(a.stream[i], a.layers[i], stream);
    } else if (spec_.recompute == Recompute::kLayer && i + 1 < layers_.size()) {
      // The last layer's activations are still there.
      layer.Forward(a.stream[i], a.stream[i + 1], a.layers[i], batch.seq_len, stream);
    }
    const BoundParameter bias_below = i > 0 ? layers_[i - 1]->output_bias() : BoundParameter();
    layer.Backward(a.stream[i], a.dx, a.layers[i], a.gradients[i], batch.seq_len, bias_below,
                   stream);
  }
  embedding_.Backward(batch, a.dx, stream);
}

void Decoder::ForwardHidden(const MicroBatch& batch, Stream& stream) {
  const Activations a = Forward(batch, /*training=*/false, stream);
  hidden_ = a.final_norm;
  hidden_logits_ = a.logits;
}

ConstTensorView Decoder::HiddenLogits(int64_t begin, int64_t rows, Stream& stream) {
  const TensorView logits = hidden_logits_.Rows(0, rows);
  head_.Logits(hidden_.Rows(begin, rows), logits, stream);
  return logits;
}

ConstTensorView Decoder::Logits(const MicroBatch& batch, Stream& stream) {
  ForwardHidden(batch, stream);
  CHECK_LE(hidden_.rows(), MaxLogitRows()) << "logits are for one sequence at a time";
  return HiddenLogits(0, hidden_.rows(), stream).Cols(0, spec_.vocab_size);
}

}  // namespace

std::unique_ptr<Model> Model::Create(const ModelSpec& spec,
                                     const std::vector<SparsitySpec>& sparsity, uint64_t seed,
                                     const std::map<std::string, SparseLayout>& layouts,
                                     Backend& backend) {
  return std::make_unique<Decoder>(spec, sparsity, seed, layouts, backend);
}

LinearFlops ForwardFlopsPerToken(const Model& model, int64_t seq_len) {
  LinearFlops sum;
  for (const Linear* linear : model.linears()) {
    const LinearFlops flops = linear->flops();
    sum.dense_equivalent += flops.dense_equivalent;
    sum.method += flops.method;
    sum.executed += flops.executed;
  }
  const ModelSpec& spec = model.spec();
  double attention = 0;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    attention += 4.0 * static_cast<double>(seq_len * spec.ShapeOf(layer).heads * spec.head_size);
  }
  const double logits = 2.0 * static_cast<double>(spec.vocab_size * spec.width);
  for (double* kind : {&sum.dense_equivalent, &sum.method, &sum.executed}) {
    *kind += attention + logits;
  }
  return sum;
}

}  // namespace filigree
