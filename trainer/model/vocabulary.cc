#include "trainer/model/vocabulary.h"

#include <algorithm>

#include "trainer/model/decoder_spec.h"

namespace filigree {
namespace {

// On a CPU a chunk is small enough that its logits are still in cache when their gradient is taken.
// On a GPU every chunk reads and writes the head's whole gradient, so there are few: as many rows
// as keep all multiprocessors busy with tiles of every product, within a budget of memory.
constexpr int64_t kCpuChunkRows = 1024;
constexpr int64_t kGpuChunkRows = 16384;
constexpr int64_t kGpuChunkBytes = int64_t{2} << 30;

Parameter Table(const std::string& name, int64_t rows, int64_t padded_rows, int64_t width,
                double init_std) {
  Parameter parameter;
  parameter.name = name;
  parameter.shape = {rows, width};
  parameter.layout = SparseLayout::Dense(rows, width);
  parameter.padding_count = (padded_rows - rows) * width;
  parameter.decay = true;
  parameter.init_std = init_std;
  return parameter;
}

}  // namespace

EmbeddingModule::EmbeddingModule(const ModelSpec& spec, Backend& backend, ParameterTable& table)
    : spec_(spec), backend_(backend), table_(table) {
  tokens_ = table.Add(Table("embedding.weight", spec.vocab_size, spec.padded_vocab_size, spec.width,
                            spec.init_std));
  if (!TraitsOf(spec.family).rope) {
    positions_ = table.Add(Table("position_embedding.weight", spec.max_positions,
                                 spec.max_positions, spec.width, spec.init_std));
  }
}

ConstTensorView EmbeddingModule::Positions() const {
  if (positions_ < 0) return ConstTensorView();
  return table_.bound(positions_).values.Reshape({spec_.max_positions, spec_.width});
}

void EmbeddingModule::Forward(const MicroBatch& batch, TensorView out, Stream& stream) {
  table_.Use(tokens_);
  if (positions_ >= 0) table_.Use(positions_);
  backend_.Embedding(
      {.tokens = batch.tokens,
       .table = table_.bound(tokens_).values.Reshape({spec_.padded_vocab_size, spec_.width}),
       .positions = Positions(),
       .out = out,
       .seq_len = batch.seq_len},
      stream);
}

void EmbeddingModule::ZeroUnlessAdded(int index, Stream& stream) {
  const BoundParameter& parameter = table_.bound(index);
  if (!parameter.adds()) backend_.device().ZeroAsync(parameter.grads, stream);
}

void EmbeddingModule::Backward(const MicroBatch& batch, ConstTensorView dout, Stream& stream) {
  // Only the rows of occurring tokens and positions are touched: the others are zero beforehand. A
  // tied head has made the gradient already, and this adds to it.
  if (!spec_.tied_head) ZeroUnlessAdded(tokens_, stream);
  TensorView dpositions;
  if (positions_ >= 0) {
    ZeroUnlessAdded(positions_, stream);
    dpositions = table_.bound(positions_).grads.Reshape({spec_.max_positions, spec_.width});
  }
  backend_.EmbeddingBackward(
      {.tokens = batch.tokens,
       .dout = dout,
       .dtable = table_.bound(tokens_).grads.Reshape({spec_.padded_vocab_size, spec_.width}),
       .dpositions = dpositions,
       .seq_len = batch.seq_len},
      stream);
  if (positions_ >= 0) table_.GradReady(positions_);
  table_.GradReady(tokens_);
}

HeadModule::HeadModule(const ModelSpec& spec, int embedding_index, Backend& backend,
                       ParameterTable& table)
    : spec_(spec), backend_(backend), table_(table), weight_(embedding_index) {
  if (!spec.tied_head) {
    weight_ = table.Add(
        Table("head.weight", spec.vocab_size, spec.padded_vocab_size, spec.width, spec.init_std));
  }
}

int64_t HeadModule::ChunkRows(int64_t tokens, int64_t seq_len) const {
  const DType dtype = backend_.device().compute_dtype();
  int64_t rows = kCpuChunkRows;
  // Only GPUs compute in BF16.
  if (dtype == DType::kBF16) {
    const int64_t row_bytes = spec_.padded_vocab_size * static_cast<int64_t>(SizeOf(dtype));
    rows = std::clamp(kGpuChunkBytes / row_bytes, kCpuChunkRows, kGpuChunkRows);
  }
  return std::min(tokens, std::max(rows, seq_len));
}

TensorView HeadModule::Weight() const {
  return table_.bound(weight_).values.Reshape({spec_.padded_vocab_size, spec_.width});
}

TensorView HeadModule::Grads() const {
  return table_.bound(weight_).grads.Reshape({spec_.padded_vocab_size, spec_.width});
}

void HeadModule::Logits(ConstTensorView x, TensorView logits, Stream& stream) {
  table_.Use(weight_);
  backend_.MatMul({.a = x, .b = Weight(), .out = logits, .transpose_b = true}, stream);
}

void HeadModule::ChunkLoss(const MicroBatch& batch, int64_t begin, double loss_scale,
                           TensorView logits, TensorView losses, Stream& stream) {
  const int64_t rows = logits.rows();
  const ConstTensorView targets = batch.targets.Range(begin, rows);
  if (!batch.distillation) {
    backend_.CrossEntropy({.logits = logits,
                           .targets = targets,
                           .losses = losses,
                           .vocab_size = spec_.vocab_size,
                           .loss_scale = loss_scale,
                           .loss_scale_on_device = batch.loss_scale},
                          stream);
    return;
  }
  const Distillation& distillation = *batch.distillation;
  backend_.DistillationLoss({.logits = logits,
                             .teacher_logits = distillation.teacher->Rows(begin, rows, stream),
                             .targets = targets,
                             .losses = losses,
                             .divergences = distillation.divergences.Range(begin, rows),
                             .vocab_size = spec_.vocab_size,
                             .temperature = distillation.temperature,
                             .alpha = distillation.alpha,
                             .loss_scale = loss_scale},
                            stream);
}

void HeadModule::Loss(ConstTensorView x, const MicroBatch& batch, double loss_scale,
                      TensorView logits, TensorView losses, TensorView dx, Stream& stream) {
  const int64_t tokens = x.rows();
  int64_t chunk_rows = logits.rows();
  if (batch.distillation) {
    chunk_rows = std::min(chunk_rows, batch.distillation->teacher->max_rows());
  }
  for (int64_t begin = 0; begin < tokens; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, tokens - begin);
    const ConstTensorView chunk = x.Rows(begin, rows);
    const TensorView chunk_logits = logits.Rows(0, rows);
    Logits(chunk, chunk_logits, stream);
    ChunkLoss(batch, begin, loss_scale, chunk_logits, losses.Range(begin, rows), stream);
    if (loss_scale == 0) continue;
    backend_.MatMul({.a = chunk_logits,
                     .b = chunk,
                     .out = Grads(),
                     .transpose_a = true,
                     .accumulate = begin > 0 || table_.bound(weight_).adds()},
                    stream);
    backend_.MatMul({.a = chunk_logits, .b = Weight(), .out = dx.Rows(begin, rows)}, stream);
  }
  // A tied matrix gets its last contribution from the embedding.
  if (loss_scale != 0 && !spec_.tied_head) table_.GradReady(weight_);
}

}  // namespace filigree
