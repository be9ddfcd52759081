// Layouts of rules that read statistics, where these are sums of exact inputs: the same bits on any
// number of ranks, with a sharded optimizer or a whole one. Runs under mpirun at several.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/bootstrap.h"
#include "data/data_loader.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/state_succession.h"
#include "trainer/topology_updater.h"

namespace filigree {
namespace {

constexpr int64_t kSamples = 7;  // no number of ranks tested divides them

RunSpec RunOf(const std::string& rule, const std::string& criterion, bool blocked) {
  RunSpec run = OddRun();
  run.phases.resize(1);
  run.phases[0].steps = 12;
  run.phases[0].schedule.lr = 0.1;
  SparsitySpec spec = FindTopologyRule(rule)->defaults();
  spec.rule = rule;
  if (!criterion.empty()) spec.criterion = criterion;
  spec.include = {"layers.*"};
  spec.parameterisation = blocked ? "block_sparse" : "masked";
  spec.block_out = spec.block_in = 8;
  spec.sparsity = 0.75;
  if (spec.initial_sparsity < 0) spec.initial_sparsity = spec.sparsity;
  spec.update_interval = 3;
  run.phases[0].sparsity = {spec};
  run.bucket_megabytes = 0.008;
  return run;
}

// What one sample adds: a multiple of 1/16 below 4, so that sums of seven are exact in any order.
double SampleValue(int64_t step, int64_t sample, size_t array, int64_t element) {
  const uint64_t draw = RandomBelow(static_cast<uint64_t>(step * kSamples + sample), array,
                                    static_cast<uint64_t>(element), 127);
  return (static_cast<double>(draw) - 63.0) / 16.0;
}

// The layouts after every event, by weight and step.
std::map<std::string, SparseLayout> LayoutsOf(const RunSpec& run, Communicator& world) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  StateSuccession state(run, world, backend, *stream);
  EXPECT_TRUE(state.Build(0, nullptr).ok());
  TopologyUpdater updater(run, world, backend);
  updater.BeginPhase(0);
  std::map<std::string, SparseLayout> layouts;
  const SampleRange mine = PartitionSamples(kSamples, world.rank(), world.size());
  for (int64_t step = 0; step <= run.phases[0].steps; ++step) {
    updater.StartCollecting(state->model(), step, *stream);
    const std::vector<TensorView> arrays = updater.Collected();
    for (size_t a = 0; a < arrays.size(); ++a) {
      for (int64_t i = 0; i < arrays[a].size(); ++i) {
        const bool squares = arrays[a].dtype() == DType::kF64;
        double sum = 0;
        for (int64_t s = 0; s < mine.count; ++s) {
          const double value = SampleValue(step, mine.begin + s, a, i);
          sum += squares ? value * value : value;
        }
        if (squares) {
          arrays[a].As<double>()[i] = sum;
        } else {
          arrays[a].As<float>()[i] = static_cast<float>(sum);
        }
      }
    }
    updater.FinishCollecting(state->model(), *stream);
    const auto update = updater.Propose(*state, step, *stream);
    if (!update.due) continue;
    if (update.changed()) state.ChangeLayouts(update.layouts, step);
    for (const auto& [name, layout] : state->Layouts()) {
      layouts.emplace(name + " at step " + std::to_string(step), layout);
    }
  }
  return layouts;
}

class TopologyExactTest : public ::testing::TestWithParam<bool> {};

TEST_P(TopologyExactTest, RanksChooseWhatOneProcessChooses) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  const auto alone = MakeSingleProcessCommunicator();
  for (const auto& [rule, criterion] :
       std::vector<std::pair<std::string, std::string>>{{"rigl", ""},
                                                        {"granet", ""},
                                                        {"set", ""},
                                                        {"idea_prune", ""},
                                                        {"gradual_magnitude", "gradient"},
                                                        {"gradual_magnitude", "wanda"},
                                                        {"global_magnitude", "taylor"}}) {
    RunSpec run = RunOf(rule, criterion, GetParam());
    const auto reference = LayoutsOf(run, *alone);
    EXPECT_GT(reference.size(), 14u) << rule;
    for (const int stage : {0, 1}) {
      run.zero_stage = stage;
      const auto found = LayoutsOf(run, *world);
      ASSERT_EQ(found.size(), reference.size()) << rule;
      for (const auto& [place, layout] : reference) {
        EXPECT_TRUE(found.at(place) == layout) << rule << ", " << place << ", ZeRO-" << stage;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Structures, TopologyExactTest, ::testing::Bool());

}  // namespace
}  // namespace filigree
