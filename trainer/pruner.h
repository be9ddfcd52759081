// Structured pruning of a run: gathers saliency, removes units along the ramp, says when to compact.
//
// Around optimizer step t of a phase with pruning: before it, where the ramp has an event, the units
// to go are chosen from the saliency of the steps so far, and the inputs of the matrices that will
// lose columns are collected during it; after it, its gradients join the moving averages, what
// stays takes over from the chosen units (second_order.h), and these become zero, or, with PROGRESSIVE removal
// (HESSO, github.com/tianyic/only_train_once), begin to shrink: multiplied by (n - 1) / n with n
// the steps left, after each step. Every rank computes the same from the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/pruning/compaction.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/progress.h"
#include "trainer/pruning/ramp.h"
#include "trainer/pruning/saliency.h"
#include "trainer/spec.h"
#include "trainer/training_state.h"

namespace filigree {

class Pruner {
 public:
  // All must outlive the pruner. `run.model` is the model as it is now: it changes with compaction.
  Pruner(const RunSpec& run, Communicator& communicator, Backend& backend)
      : run_(run), communicator_(communicator), backend_(backend) {}

  // What a checkpoint holds. Before BeginPhase.
  void Restore(std::optional<PruningProgress> progress) { progress_ = std::move(progress); }
  // The phase begins, or goes on after a restart.
  void BeginPhase(int phase);
  bool active() const { return ramp_.has_value() && !progress_->done; }
  // Nothing where no phase so far prunes.
  const std::optional<PruningProgress>& progress() const { return progress_; }

  // `step` optimizer steps of the run are done, the next one begins. Collective.
  void BeforeStep(TrainingState& state, int64_t step, Stream& stream);

  // The step is done, `step` of them now; its gradients are still there. `skipped`: it changed
  // nothing. Returns how many parameters it removed. Collective.
  int64_t AfterStep(TrainingState& state, int64_t step, bool skipped, Stream& stream);

  // The smaller model to go on with, where enough is gone after `step`.
  std::optional<Compaction> DueCompaction(int64_t step) const;
  // The run's model has become that one.
  void Compacted(const Compaction& compaction);
  // The phase is over: says so where the model is still larger than it was to become.
  void EndPhase() const;

  const UnitTable& table() const { return *table_; }
  // Units that live, by kind, over all layers; and their parameters.
  std::array<int64_t, kUnitKinds> LiveUnits() const;
  int64_t LiveParameters() const;
  // What this rank exchanged for pruning since the last call.
  int64_t TakeBytes() { return std::exchange(bytes_, 0); }

 private:
  // A block of columns of which some go, of all matrices that read the same inputs there.
  struct Block {
    std::pair<std::string, int> input;  // which inputs these are
    std::vector<std::string> weights;
    int64_t begin = 0, size = 0;
    std::vector<int64_t> gone;  // offsets in the block, ascending
    // The columns [read, read + width), those of the block among them, whose [width, width] inner
    // products begin at `gram` of grams_.
    int64_t read = 0, width = 0;
    int64_t gram = 0;
  };

  const PruningSpec& spec() const { return *run_.phases[phase_].pruning; }
  const SaliencyCriterion& criterion() const { return *FindSaliencyCriterion(spec().criterion); }
  double tokens_per_step() const {
    return static_cast<double>(run_.phases[phase_].batch.tokens_per_step);
  }
  int64_t InPhase(int64_t step) const { return step - run_.phases[phase_].first_step; }
  bool progressive() const { return spec().removal == PruningSpec::Removal::kProgressive; }
  void KeepWhatShrinks(int64_t step);
  void WarnOfFewEvents() const;
  std::vector<bool> UnitsThatStay() const;
  void Choose(const TrainingState& state, int64_t step, Stream& stream);
  void AddBlocks(const std::string& weight, const ParameterUnits& units);
  void Collect(TrainingState& state, bool inputs, Stream& stream);
  void GatherSaliency(const TrainingState& state, Stream& stream);
  std::vector<double> InputSquares();
  std::vector<float> Grams(Stream& stream);
  void Compensate(TrainingState& state, Stream& stream);
  void Mark(int64_t step);
  bool AnyShrinks(int64_t step) const;
  void Shrink(TrainingState& state, int64_t step, Stream& stream);

  const RunSpec& run_;
  Communicator& communicator_;
  Backend& backend_;
  int phase_ = 0;
  std::optional<PruningProgress> progress_;
  std::optional<UnitTable> table_;
  std::optional<Ramp> ramp_;
  std::vector<int64_t> chosen_;    // to go after the coming step
  bool collecting_ = false;        // the coming step's backward passes do
  std::vector<Block> blocks_;      // whose inputs the coming step collects
  DeviceBuffer grams_;             // F32, of all blocks
  std::map<std::string, std::vector<double>> input_squares_;  // by weight, of the coming step
  int64_t bytes_ = 0;
};

// The device memory of the inputs' inner products that a removal collects where units of every block
// go: of blocks in which none that went before is stored still.
int64_t CollectedBytes(const ModelSpec& model, const PruningSpec& spec);

}  // namespace filigree
