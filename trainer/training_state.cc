#include "trainer/training_state.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "kernels/base/log.h"
#include "kernels/base/rng.h"
#include "trainer/agree.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/initial_values.h"
#include "trainer/metrics/numbers.h"
#include "trainer/sample_tree.h"
#include "trainer/state_layout.h"
#include "trainer/state_move.h"
#include "trainer/topology/plan.h"

namespace filigree {

namespace {

constexpr std::pair<StateKind, CheckpointArray> kArrays[] = {
    {StateKind::kMaster, CheckpointArray::kMaster},
    {StateKind::kM, CheckpointArray::kM},
    {StateKind::kV, CheckpointArray::kV},
    {StateKind::kBorn, CheckpointArray::kBorn}};

std::span<const float> AsFloats(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}

void ScatterFloats(FlatBuffer& buffer, int segment, StateKind kind,
                   const std::vector<float>& values, Stream& stream) {
  ScatterSegment(buffer, segment, kind, std::as_bytes(std::span<const float>(values)), stream);
}

// For each parameter the updates over which a grown value's own are ramped up.
std::vector<int64_t> GrowthRamps(const std::vector<Parameter>& parameters, const PhaseSpec& phase) {
  std::vector<int64_t> ramps;
  for (const Parameter& parameter : parameters) {
    ramps.push_back(MatchSparsity(parameter.name, phase.sparsity).growth_ramp_steps);
  }
  return ramps;
}

// Stored values of one layout of a parameter in another: cells new to it are zero, and so is
// padding.
class Remap {
 public:
  Remap(const Parameter& from, const Parameter& to)
      : count_(to.segment_count()), same_(from.layout == to.layout) {
    if (!same_) slots_ = IndexRemap(from.layout, to.layout);
  }
  std::vector<float> Apply(std::span<const float> from) const {
    std::vector<float> to(count_, 0.0f);
    if (same_) {
      std::copy_n(from.begin(), std::min(from.size(), to.size()), to.begin());
      return to;
    }
    const auto slots = static_cast<int64_t>(slots_.size());
#pragma omp parallel for
    for (int64_t slot = 0; slot < slots; ++slot) {
      if (slots_[slot] >= 0) to[slot] = from[slots_[slot]];
    }
    return to;
  }

 private:
  int64_t count_;
  bool same_;
  std::vector<int64_t> slots_;
};

// The stored cells of a dense weight, padding zero.
std::vector<float> SegmentOfDense(const Parameter& parameter, const std::vector<float>& dense) {
  const std::vector<int64_t> logical = parameter.layout.LogicalIndices();
  std::vector<float> segment(parameter.segment_count(), 0.0f);
  for (size_t slot = 0; slot < logical.size(); ++slot) {
    if (logical[slot] >= 0) segment[slot] = dense[logical[slot]];
  }
  return segment;
}

}  // namespace

SparsityCount CountSparsity(const std::vector<Parameter>& parameters) {
  SparsityCount count;
  for (const Parameter& parameter : parameters) {
    if (!parameter.sparsifiable) continue;
    count.logical += parameter.logical_count();
    count.nonzero += parameter.layout.nonzero_count();
  }
  return count;
}

TrainingState::TrainingState(const RunSpec& run, int phase,
                             const std::map<std::string, SparseLayout>& layouts,
                             Communicator& communicator, Backend& backend, Stream& stream)
    : run_(run), phase_(phase), communicator_(communicator), backend_(backend) {
  const PhaseSpec& spec = run.phases[phase];
  model_ = Model::Create(run.model, InitialSparsity(LinearSpecs(run.model), spec), run.seed,
                         layouts, backend);
  buffer_ = std::make_unique<FlatBuffer>(
      MakeFlatBuffer(model_->parameters(), run, phase, communicator, backend.device(), stream));
  if (TracksAges(run, phase)) buffer_->AllocateBorn(stream);
  model_->Bind(*buffer_);
  model_->ReserveActivations(spec.batch.micro_batch_sequences, spec.batch.seq_len,
                             /*training=*/true);
  exchange_ = std::make_unique<GradientExchange>(*buffer_, communicator, WireOf(run, backend));
  optimizer_ = std::make_unique<Optimizer>(
      model_->parameters(), GrowthRamps(parameters(), spec),
      RandomBits(run.seed, RngStream("stochastic rounding"), static_cast<uint64_t>(phase)),
      *buffer_, *exchange_, backend);
  if (SumsInTree(run, backend.device())) optimizer_->TakeWholeGradients();
}

void TrainingState::InitializeValues(Stream& stream) {
  const auto begin = std::chrono::steady_clock::now();
  int64_t stored = 0;
  for (size_t i = 0; i < parameters().size(); ++i) {
    WriteInitialValues(parameters()[i], run_.seed, *buffer_, static_cast<int>(i), backend_, stream);
    stored += parameters()[i].segment_count();
  }
  model_->ValuesChanged();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  LogInfo("initialised " + FormatCount(static_cast<double>(stored)) + " values in " +
          FormatDuration(seconds.count()));
}

Status TrainingState::Load(const CheckpointReader& reader, bool moments, Stream& stream) {
  const bool with_moments = moments && reader.info().has_moments;
  if (with_moments) optimizer_->set_last_norm(reader.info().grad_norm);
  for (size_t i = 0; i < parameters().size(); ++i) {
    const Parameter& to = parameters()[i];
    const WeightParts parts = FindWeightParts(reader.info().parameters, to.name);
    if (parts.has_factors() && !FindWeightParts(parameters(), to.name).has_factors()) {
      ASSIGN_OR_RETURN(const std::vector<float> merged,
                       MergedWeight(reader.info().parameters, parts, [&](int index) {
                         return reader.ReadSegment(index, CheckpointArray::kMaster);
                       }));
      ScatterFloats(*buffer_, static_cast<int>(i), StateKind::kMaster, SegmentOfDense(to, merged),
                    stream);
      continue;
    }
    const int source = parts.weight;
    CHECK(source >= 0) << to.name << " is missing from " << reader.directory();
    const Remap remap(reader.info().parameters[source], to);
    for (const auto& [kind, array] : kArrays) {
      if (kind != StateKind::kMaster && !with_moments) continue;
      if (kind == StateKind::kBorn && !(buffer_->has_born() && reader.info().has_born)) continue;
      ASSIGN_OR_RETURN(const std::vector<float> values, reader.ReadSegment(source, array));
      ScatterFloats(*buffer_, static_cast<int>(i), kind, remap.Apply(values), stream);
    }
  }
  model_->ValuesChanged();
  return OkStatus();
}

std::vector<float> TrainingState::Merged(const WeightParts& parts, Stream& stream) {
  return MergedWeight(parameters(), parts,
                      [&](int index) -> StatusOr<std::vector<float>> {
                        const std::vector<std::byte> bytes = GatherSegment(
                            *buffer_, index, StateKind::kMaster, communicator_, stream);
                        const std::span<const float> floats = AsFloats(bytes);
                        return std::vector<float>(floats.begin(), floats.end());
                      })
      .value();
}

int64_t TrainingState::TakeOver(TrainingState& previous, bool keep_moments, int64_t updates_done,
                                Stream& stream) {
  optimizer_->set_last_norm(previous.optimizer_->last_norm());
  int64_t gathered = 0;
  const bool sharded = previous.buffer_->layout().shards() > 1;
  std::vector<ParameterMove> moves;
  for (size_t i = 0; i < parameters().size(); ++i) {
    const Parameter& to = parameters()[i];
    const WeightParts parts = FindWeightParts(previous.parameters(), to.name);
    if (parts.has_factors() && !FindWeightParts(parameters(), to.name).has_factors()) {
      // Moments of factors say nothing about the weight's: they start at zero.
      const std::vector<float> merged = previous.Merged(parts, stream);
      for (const int part : {parts.weight, parts.low_rank_a, parts.low_rank_b}) {
        if (sharded && part >= 0) {
          gathered +=
              previous.parameters()[part].segment_count() * static_cast<int64_t>(sizeof(float));
        }
      }
      ScatterFloats(*buffer_, static_cast<int>(i), StateKind::kMaster, SegmentOfDense(to, merged),
                    stream);
      continue;
    }
    const int source = parts.weight;
    CHECK(source >= 0) << to.name << " has no counterpart in the phase before";
    moves.push_back({.source = source,
                     .target = static_cast<int>(i),
                     .from = &previous.parameters()[source],
                     .to = &to});
  }
  gathered += MoveState(*previous.buffer_, *buffer_, moves, keep_moments, updates_done,
                        communicator_, backend_, stream);
  model_->ValuesChanged();
  return gathered;
}

int64_t TrainingState::TakeOver(TrainingState& previous, const UnitTable& table,
                                const Compaction& compaction, Stream& stream) {
  optimizer_->set_last_norm(previous.optimizer_->last_norm());
  std::vector<ParameterMove> moves;
  for (size_t i = 0; i < parameters().size(); ++i) {
    const Parameter &from = previous.parameters()[i], &to = parameters()[i];
    CHECK(from.name == to.name) << from.name << " became " << to.name;
    const int index = static_cast<int>(i);
    moves.push_back({.source = index, .target = index, .from = &from, .to = &to});
    const KeptCells kept = KeptCellsOf(from, table, compaction);
    CHECK_EQ(static_cast<int64_t>(kept.rows.size()), to.layout.out());
    CHECK_EQ(static_cast<int64_t>(kept.columns.size()), to.layout.in());
    if (from.layout == to.layout) continue;  // of one size: all of them stay
    moves.back().rows.assign(kept.rows.begin(), kept.rows.end());
    moves.back().columns.assign(kept.columns.begin(), kept.columns.end());
  }
  const int64_t gathered = MoveState(*previous.buffer_, *buffer_, moves, /*moments=*/true,
                                     /*updates_done=*/0, communicator_, backend_, stream);
  model_->ValuesChanged();
  return gathered;
}

std::map<std::string, SparseLayout> TrainingState::Layouts() const {
  std::map<std::string, SparseLayout> layouts;
  for (const Parameter& parameter : parameters()) {
    layouts.emplace(parameter.name, parameter.layout);
  }
  return layouts;
}

Status TrainingState::WriteArrays(CheckpointWriter* writer, Stream& stream) {
  Status status;  // every rank takes part in every gather, whatever rank 0's disk says
  for (size_t i = 0; i < parameters().size(); ++i) {
    for (const auto& [kind, array] : kArrays) {
      if (kind == StateKind::kBorn && !buffer_->has_born()) continue;
      const std::vector<std::byte> bytes =
          GatherSegment(*buffer_, static_cast<int>(i), kind, communicator_, stream);
      if (writer && status.ok()) status = writer->Add(static_cast<int>(i), array, AsFloats(bytes));
    }
  }
  return status;
}

Status TrainingState::Save(const std::string& directory, const CheckpointInfo& progress,
                           const std::string& tokenizer_dir, Stream& stream) {
  std::unique_ptr<CheckpointWriter> writer;
  Status status;
  if (communicator_.rank() == 0) {
    CheckpointInfo info = progress;
    info.parameters = parameters();
    info.has_born = buffer_->has_born();
    info.grad_norm = optimizer_->last_norm();
    auto begun = CheckpointWriter::Begin(directory, std::move(info), tokenizer_dir);
    if (begun.ok()) {
      writer = std::move(begun).value();
    } else {
      status = begun.status();
    }
  }
  RETURN_IF_ERROR(AgreeOnStatus(status, communicator_));
  status = WriteArrays(writer.get(), stream);
  if (writer && status.ok()) status = writer->Commit();
  return AgreeOnStatus(status, communicator_);
}

}  // namespace filigree
