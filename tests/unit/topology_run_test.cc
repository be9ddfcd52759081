// The engine inside a training state: random configurations, ages in AdamW. Runs under mpirun at
// several numbers of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "tests/unit/topology_checked_run.h"
#include "tests/unit/topology_random.h"

namespace filigree {
namespace {

std::string TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "filigree-topology-XXXXXX").string();
  CHECK(mkdtemp(name.data()) != nullptr) << name;
  return name;
}

// Layouts and weights of a deterministic run do not depend on the number of ranks.
void ExpectSameAlone(const RunSpec& run, CheckedRun& ranks) {
  const auto alone = MakeSingleProcessCommunicator();
  CheckedRun reference(run, *alone);
  ASSERT_NO_FATAL_FAILURE(reference.Run(""));
  ASSERT_EQ(ranks.state().Layouts(), reference.state().Layouts());
  for (size_t i = 0; i < ranks.state().parameters().size(); ++i) {
    const int parameter = static_cast<int>(i);
    for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      ASSERT_EQ(ranks.Gather(ranks.state(), parameter, kind),
                reference.Gather(reference.state(), parameter, kind))
          << ranks.state().parameters()[i].name << " state " << static_cast<int>(kind);
    }
  }
}

TEST(TopologyRunTest, RandomConfigurations) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  std::string folder = world->rank() == 0 ? TemporaryFolder() : "";
  world->BroadcastHost(&folder, 0);
  int ran = 0;
  std::map<std::string, int> seen;
  for (uint64_t number = 0; number < 130; ++number) {
    const RunSpec run = RandomRun(number);
    // What a config cannot ask for is refused with a message, never by a crash.
    if (!ValidateTopology(run, LinearSpecs(run.model)).ok()) continue;
    const SparsitySpec& spec = run.phases.back().sparsity[0];
    SCOPED_TRACE("configuration " + std::to_string(number) + ", rule " + spec.rule);
    CheckedRun checked(run, *world);
    const std::string checkpoint = folder + "/" + std::to_string(number);
    ASSERT_NO_FATAL_FAILURE(checked.Run(ran % 3 == 0 ? checkpoint : ""));
    if (run.deterministic && ran % 2 == 0) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameAlone(run, checked));
    }
    ++ran;
    ++seen["rule " + spec.rule];
    ++seen[spec.parameterisation];
    ++seen["distribution " + spec.distribution];
    ++seen["criterion " + spec.criterion];
    ++seen["clock " + std::to_string(static_cast<int>(spec.clock))];
    ++seen["curve " + std::to_string(static_cast<int>(spec.curve))];
  }
  EXPECT_GE(ran, 45);
  const size_t curves_and_clocks = 5 + 4;
  EXPECT_EQ(seen.size(), TopologyRules().size() + 2 + Distributions().size() + Criteria().size() +
                             curves_and_clocks)
      << ::testing::PrintToString(seen);
  world->Barrier();
  if (world->rank() == 0) std::filesystem::remove_all(folder);
}

// The update of a value that joined late is that of a fresh AdamW at its own age, ramped up.
TEST(AgedAdamWTest, OwnAgeAndRamp) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  constexpr int64_t kCount = 6, kSteps = 12, kRamp = 4;
  const std::vector<float> born = {0, 5, 5, 0, 9, 0};
  std::vector<float> aged(kCount, 0.5f), m(kCount, 0), v(kCount, 0), grads(kCount);
  std::vector<double> expected(kCount, 0.5), em(kCount, 0), ev(kCount, 0);
  const float scale = 1;
  const auto view = [](std::vector<float>& a) {
    return TensorView(a.data(), DType::kF32, {kCount});
  };
  std::vector<float> birth = born;
  for (int64_t step = 10; step < 10 + kSteps; ++step) {
    for (int64_t i = 0; i < kCount; ++i) grads[i] = 0.1f * static_cast<float>(i + 1 + step % 3);
    backend.AdamW({.values = view(aged),
                   .master = view(aged),
                   .grads = view(grads),
                   .m = view(m),
                   .v = view(v),
                   .scale = ConstTensorView(&scale, DType::kF32, {1}),
                   .lr = 0.01,
                   .step = step,
                   .born = view(birth),
                   .growth_ramp = kRamp},
                  *stream);
    for (int64_t i = 0; i < kCount; ++i) {
      const double age = static_cast<double>(step) - born[i], g = grads[i];
      const double ramp = born[i] > 0 ? std::min(1.0, age / kRamp) : 1.0;
      em[i] = 0.9 * em[i] + 0.1 * g;
      ev[i] = 0.95 * ev[i] + 0.05 * g * g;
      expected[i] -= 0.01 * ramp * (em[i] / (1 - std::pow(0.9, age))) /
                     (std::sqrt(ev[i] / (1 - std::pow(0.95, age))) + 1e-8);
      ASSERT_NEAR(aged[i], expected[i], 1e-6) << "element " << i << " step " << step;
    }
  }
}

}  // namespace
}  // namespace filigree
