// Everything a phase trains: the model, its flat state, the exchange and the optimizer.
//
// State moves parameter by parameter, each gathered whole, remapped and scattered to the ranks that
// own its pieces: on the host into and out of checkpoints, on the device from one phase's or
// topology's layouts to the next's (state_move.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/gradient_exchange.h"
#include "kernels/backend.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/model/model.h"
#include "trainer/optimizer.h"
#include "trainer/pruning/compaction.h"
#include "trainer/spec.h"

namespace filigree {

// Stored values and zeros over the sparsifiable weights, counted from the layouts.
struct SparsityCount {
  int64_t logical = 0, nonzero = 0;
  double sparsity() const {
    return logical == 0 ? 0 : 1.0 - static_cast<double>(nonzero) / logical;
  }
};
SparsityCount CountSparsity(const std::vector<Parameter>& parameters);

class TrainingState {
 public:
  // The state of phase `phase`, all zeros; layouts by parameter name where given, else drawn.
  // `run`, `communicator` and `backend` must outlive it.
  TrainingState(const RunSpec& run, int phase, const std::map<std::string, SparseLayout>& layouts,
                Communicator& communicator, Backend& backend, Stream& stream);

  int phase() const { return phase_; }
  Model& model() { return *model_; }
  const std::vector<Parameter>& parameters() const { return model_->parameters(); }
  FlatBuffer& buffer() { return *buffer_; }
  const FlatBuffer& buffer() const { return *buffer_; }
  GradientExchange& exchange() { return *exchange_; }
  Optimizer& optimizer() { return *optimizer_; }
  // While backward goes on (layer_updates.h), instead of after it.
  bool updates_by_layers() const { return run_.phases[phase_].optimizer.per_layer; }

  // Initial values as functions of the run's seed. Constructed states hold zeros.
  void InitializeValues(Stream& stream);
  // Values and, where `moments` is set and the checkpoint has them, moments. Cells that the
  // checkpoint does not store start at zero, cells that this state does not store are dropped. A
  // weight stored as factors is merged where this state has none.
  Status Load(const CheckpointReader& reader, bool moments, Stream& stream);
  // Takes values over from a state of the same model with other layouts: cells stored in both keep
  // theirs, new ones start at zero. A weight that was stored as factors is merged where this state
  // has none; its moments start at zero. Collective.
  // With `keep_moments` also moments (and ages); cells that join are `updates_done` updates young.
  // Returns the bytes exchanged.
  int64_t TakeOver(TrainingState& previous, bool keep_moments, int64_t updates_done,
                   Stream& stream);
  // Takes everything over, moments included, from a state of the larger model that `compaction`
  // (of `table`) made this one's from. Collective; returns the bytes exchanged.
  int64_t TakeOver(TrainingState& previous, const UnitTable& table, const Compaction& compaction,
                   Stream& stream);
  // The layouts of all weights, by parameter name.
  std::map<std::string, SparseLayout> Layouts() const;
  // Writes RUN/checkpoints/step_... ; collective, all ranks return the same status.
  Status Save(const std::string& directory, const CheckpointInfo& progress,
              const std::string& tokenizer_dir, Stream& stream);

 private:
  // A weight's parts as one dense matrix. Collective.
  std::vector<float> Merged(const WeightParts& parts, Stream& stream);
  Status WriteArrays(CheckpointWriter* writer, Stream& stream);

  const RunSpec& run_;
  int phase_;
  Communicator& communicator_;
  Backend& backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<FlatBuffer> buffer_;
  std::unique_ptr<GradientExchange> exchange_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace filigree
